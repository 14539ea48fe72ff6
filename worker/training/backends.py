"""What loads a base model and puts the adapter on it. Each backend is a name in `BACKENDS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from worker.hardware import available_ram
from worker.training import base_model
from worker.training.data import FALLBACK_TEMPLATE
from worker.training.job import PermanentError, UnfitMachineError
from worker.training.state import seed_all

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from worker.protocol import Hardware, JobSpec


@dataclass(frozen=True)
class Loaded:
    """A base model with a fresh fp32 adapter on it, its tokenizer, and the hashes that identify both."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    precision: str
    base_sha256: str
    tokenizer_sha256: str


class Backend(Protocol):
    """Loads models for one job. `name` goes into every manifest."""

    name: str

    def load(self, spec: JobSpec, hardware: Hardware, trust_remote_code: bool) -> Loaded:
        """Base model, tokenizer and adapter. Raises `PermanentError` or `UnfitMachineError` in one sentence."""
        ...


class HfBackend:
    """transformers + PEFT, and bitsandbytes' NF4 with double quantisation for `qlora`; on a GPU or a CPU."""

    name = "hf"

    def load(self, spec: JobSpec, hardware: Hardware, trust_remote_code: bool) -> Loaded:
        """See `Backend.load`. The adapter's first values are a function of the job's seed alone."""
        precision = precision_of(hardware)
        directory = base_model.resolve(spec.base_model)
        base_model.check_code(spec.base_model, directory, trust_remote_code)
        needed = base_model.load_bytes(spec.base_model, directory, spec.adapter == "qlora", precision)
        check_fit(spec.base_model, needed, hardware)
        tokenizer = load_tokenizer(directory, trust_remote_code)
        model = self._base(spec, directory, hardware, precision, trust_remote_code)
        keep_trainable_layout(model)
        adapted = add_adapter(model, spec)
        return Loaded(
            model=adapted,
            tokenizer=tokenizer,
            precision=precision,
            base_sha256=base_model.sha256(directory),
            tokenizer_sha256=base_model.tokenizer_sha256(tokenizer),
        )

    def _base(self, spec: JobSpec, directory: Path, hardware: Hardware, precision: str, trust: bool) -> Any:
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        dtype = DTYPES[precision]
        options: dict[str, Any] = {}
        if spec.adapter == "qlora":
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
        try:
            return AutoModelForCausalLM.from_pretrained(
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


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def precision_of(hardware: Hardware) -> str:
    """Compute precision: fp32 on a CPU, bf16 from compute capability 8 on, fp16 below.

    `torch.cuda.is_bf16_supported()` is no guide: it counts emulation on older cards.
    """
    if hardware.device == "cpu":
        return "fp32"
    return "bf16" if (hardware.compute_capability or (0, 0)) >= (8, 0) else "fp16"


def load_tokenizer(directory: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer, with the fallback template if it brings none. Raises `PermanentError` if there is none to load."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception on a broken file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PermanentError(f"the tokenizer in {directory.name} cannot be loaded: {reason}") from error
    if not tokenizer.chat_template:
        tokenizer.chat_template = FALLBACK_TEMPLATE
    return tokenizer


def add_adapter(model: Any, spec: JobSpec) -> PeftModel:
    """Put a fresh LoRA adapter on `model`, in fp32. Raises `PermanentError` if its targets match no module."""
    from peft import LoraConfig, get_peft_model

    targets, alpha = spec.lora_target_modules, float(spec.lora_alpha)
    config = LoraConfig(
        r=spec.lora_r,
        lora_alpha=int(alpha) if alpha.is_integer() else alpha,  # pyright: ignore[reportArgumentType] - it is divided
        lora_dropout=spec.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    seed_all(spec.seed)
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        names = ", ".join(sorted({n.rpartition(".")[2] for n, m in model.named_modules() if _is_linear(m)})[:12])
        raise PermanentError(
            f"lora_target_modules {list(targets)} match nothing in {spec.base_model}; its linear modules are: {names}"
        ) from error
    make_fp32(adapted)
    return adapted  # pyright: ignore[reportReturnType] - never the mixed model, whose config is another


def make_fp32(model: torch.nn.Module) -> None:
    """Cast every trainable parameter to fp32.

    Needed in every session: SFTTrainer makes the adapter of a quantised model bf16, which the fp16 loss scaler cannot
    handle and which a resumed session would not repeat.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def keep_trainable_layout(model: torch.nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights for inference.

    On CPUs with AVX512-BF16 the first evaluation would repack them for a kernel without a backward pass, and every
    later training step would silently lose the gradient that flows through the base model.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # pyright: ignore[reportArgumentType] - a plain attribute


def check_fit(name: str, needed: int, hardware: Hardware) -> None:
    """Raise `UnfitMachineError` if a base model of `needed` bytes leaves no room on this machine."""
    if hardware.device == "cuda":
        free, place = torch.cuda.mem_get_info(0)[0], f"GPU memory of {hardware.name}"
    else:
        free, place = available_ram(), "free memory of this machine"
    if free is not None and needed > free:
        raise UnfitMachineError(
            f"base model {name} needs about {needed / 2**30:.1f} GiB but the {place} is {free / 2**30:.1f} GiB; "
            "use a larger machine, a smaller model, or adapter: qlora"
        )


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear)


BACKENDS: dict[str, Callable[[], Backend]] = {"hf": HfBackend}
"""Factory by name; `auto` is `hf`, which runs everywhere."""


def select(wanted: str) -> Backend:
    """The backend of a job's `backend` key. Raises `UnfitMachineError` if it is not installed here."""
    if wanted == "auto":
        return BACKENDS["hf"]()
    if wanted not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise UnfitMachineError(f"backend '{wanted}' is not available on this machine; set backend to auto or {known}")
    return BACKENDS[wanted]()
