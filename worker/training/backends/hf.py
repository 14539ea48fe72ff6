"""The `hf` backend: transformers, PEFT, and bitsandbytes' NF4 for `qlora`, on a GPU or a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.training import base_model
from worker.training.interface import PermanentError
from worker.training.loss import Hidden, backbone_states
from worker.training.new_tokens import trained_rows
from worker.training.precision import DTYPES

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from worker.shared.job_spec import JobSpec
    from worker.shared.manifest import Hardware


class HfBackend:
    """See `Backend`."""

    name = "hf"
    own_checkpointing = False
    needs_bitsandbytes = False

    def import_libraries(self, hardware: Hardware) -> None:
        pass

    def base(self, spec: JobSpec, directory: Path, hardware: Hardware, precision: str, trust: bool) -> Any:
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        dtype = DTYPES[precision]
        options: dict[str, Any] = {}
        if spec.adapter == "qlora" and not base_model.is_quantised(spec.base_model, directory):
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
        if attention := base_model.attention(spec, directory):
            options["attn_implementation"] = attention
        try:
            model = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=dtype,
                device_map={"": 0 if hardware.device == "cuda" else "cpu"},
                trust_remote_code=trust,
                use_safetensors=True,
                local_files_only=True,
                **options,
            )
        except (OSError, ValueError, KeyError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise PermanentError(f"base model {spec.base_model} cannot be loaded: {reason}") from error
        if spec.adapter == "qlora":
            _compute_in(model, dtype)
        return model

    def adapted(self, model: Any, spec: JobSpec, targets: list[str] | str, new: Sequence[int]) -> PeftModel:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=spec.lora_r,
            lora_alpha=int_if_integral(spec.lora_alpha),  # pyright: ignore[reportArgumentType] - only used in a division
            lora_dropout=spec.lora_dropout,
            use_rslora=spec.peft_use_rslora,
            use_dora=spec.peft_use_dora,
            trainable_token_indices=trained_rows(model, spec.peft_trainable_token_indices, new),
            layers_to_transform=list(spec.lora_layers_to_transform) or None,
            target_modules=targets,
            target_parameters=list(spec.lora_target_parameters) or None,
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, config)  # pyright: ignore[reportReturnType] - never the mixed model

    def hidden(self, hardware: Hardware) -> Hidden:
        return backbone_states


def _compute_in(model: Any, dtype: torch.dtype) -> None:
    """Make every 4-bit module compute in `dtype`. Stored ones may name a dtype that this GPU lacks.

    For example, a T4 has no bf16.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype = dtype
            if state := getattr(module.weight, "quant_state", None):
                state.dtype = dtype


def int_if_integral(number: float) -> int | float:
    """`number` as an int if it is integral, which is the usual form in an adapter's config."""
    return int(number) if float(number).is_integer() else number
