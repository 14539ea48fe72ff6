"""The `unsloth` backend: fused LoRA kernels and offloaded gradient checkpointing on one NVIDIA GPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from worker.training import unusable
from worker.training.backends.hf import int_if_integral
from worker.training.interface import PermanentError
from worker.training.loss import Hidden, backbone_states
from worker.training.precision import DTYPES

if TYPE_CHECKING:
    from peft import PeftModel

    from worker.shared.job_spec import JobSpec
    from worker.shared.manifest import Hardware

_STATES = "UNSLOTH_RETURN_HIDDEN_STATES"


class UnslothBackend:
    """See `Backend`. Only model and adapter are unsloth's. Loss, trainer and optimiser are shared by all backends.

    Unsloth's fused loss is not used. Its slices depend on the free memory, so two sessions would sum differently.
    """

    name = "unsloth"
    own_checkpointing = True
    needs_bitsandbytes = True

    def import_libraries(self, hardware: Hardware) -> None:
        """Import unsloth, which patches transformers and PEFT at import."""
        if hardware.device == "cuda":
            os.environ.setdefault("UNSLOTH_DISABLE_CPU_FALLBACK", "1")
        os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
        # Compiling every block added 41 s to a session's first step on an H100 and made no later step faster.
        os.environ.setdefault("UNSLOTH_BLOCK_COMPILE", "0")
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache / "trainhop" / "unsloth_compiled_cache"))
        unusable.hide()  # again, since unsloth may have been installed with a newer torchao
        # The backward pass of xformers is not deterministic. Without it unsloth uses PyTorch's attention, which is.
        sys.modules.setdefault("xformers", None)  # pyright: ignore[reportArgumentType] - Python's own way to say "absent"
        import unsloth  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]

        torch.use_deterministic_algorithms(True)  # also for what torch's compiler makes

    def base(self, spec: JobSpec, directory: Path, hardware: Hardware, precision: str, trust: bool) -> Any:
        from unsloth import FastLanguageModel  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

        quantised = spec.adapter == "qlora"
        try:
            model, _ = FastLanguageModel.from_pretrained(
                str(directory),
                max_seq_length=spec.sequence_len,
                dtype=DTYPES[precision],
                load_in_4bit=quantised,
                load_in_16bit=not quantised,
                device_map={"": 0 if hardware.device == "cuda" else "cpu"},
                trust_remote_code=trust,
                use_gradient_checkpointing="unsloth",
                use_exact_model_name=True,
                local_files_only=True,
                fix_tokenizer=False,
            )
        except (OSError, ValueError, KeyError, NotImplementedError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise PermanentError(
                f"base model {spec.base_model} cannot be loaded by unsloth: {reason}; set backend to hf"
            ) from error
        return model

    def adapted(self, model: Any, spec: JobSpec, targets: list[str] | str, new: Sequence[int]) -> PeftModel:
        from unsloth import FastLanguageModel  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

        return FastLanguageModel.get_peft_model(
            model,
            r=spec.lora_r,
            lora_alpha=int_if_integral(spec.lora_alpha),
            lora_dropout=spec.lora_dropout,
            use_rslora=spec.peft_use_rslora,
            layers_to_transform=list(spec.lora_layers_to_transform) or None,
            target_modules=targets,
            bias="none",
            use_gradient_checkpointing="unsloth",
            random_state=spec.seed,
        )

    def hidden(self, hardware: Hardware) -> Hidden:
        # Without a GPU unsloth's models are plain transformers models.
        return _states if hardware.device == "cuda" else backbone_states


def _states(causal: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Hidden states from the causal model's `forward`, which sets unsloth's mask and fast paths."""
    os.environ[_STATES] = "1"
    try:
        # The presence of labels selects training mode. Their values are not used.
        states = (
            type(causal)
            .forward(causal, input_ids=input_ids, attention_mask=attention_mask, labels=input_ids, use_cache=False)
            .logits
        )
    finally:
        os.environ.pop(_STATES)
    if states.shape[-1] != causal.config.get_text_config().hidden_size:
        raise PermanentError(f"unsloth gives no hidden states for {type(causal).__name__}; set backend to hf")
    return states
