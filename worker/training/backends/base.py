"""Loads a base model with its adapter: what all backends share, and which backend a machine gets."""

from __future__ import annotations

import importlib
import logging
import math
import os
import re
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from worker.agent.hardware import available_ram
from worker.shared import causes, package_folder
from worker.shared import packages as install
from worker.shared.module_patterns import PatternError, check
from worker.training import base_model, continued, new_tokens, target_parameters
from worker.training.encoding import load_tokenizer
from worker.training.interface import PermanentError, UnfitMachineError
from worker.training.loss import Hidden
from worker.training.precision import precision_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from worker.shared.job_spec import JobSpec
    from worker.shared.manifest import Hardware

_NOT_INSTALLED = "it is not installed"
OLDEST = (7, 0)
"""Minimum compute capability. Triton and current builds of torch and bitsandbytes have no kernels below it."""


@dataclass(frozen=True)
class Loaded:
    """A base model with a new fp32 adapter, its tokenizer, and the hashes that identify both."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    precision: str
    base_sha256: str
    tokenizer_sha256: str
    hidden: Hidden
    frozen: Mapping[str, torch.nn.Parameter] = field(default_factory=dict[str, torch.nn.Parameter])
    """The adapter that the job continues from, where its method compares with it."""
    own_checkpointing: bool = False
    """Whether the model does its own gradient checkpointing, so that the trainer must not enable another."""


class Backend(Protocol):
    """Loads models for one job. `name` is part of every manifest."""

    name: str

    def import_libraries(self, hardware: Hardware) -> None:
        """Import what has to be imported before transformers and TRL."""
        ...

    def base(self, spec: JobSpec, directory: Path, hardware: Hardware, precision: str, trust: bool) -> Any:
        """The frozen base model on the machine's device. Raises `PermanentError` if it cannot be loaded."""
        ...

    def adapted(self, model: Any, spec: JobSpec, targets: list[str] | str, new: Sequence[int]) -> PeftModel:
        """The base model with a LoRA adapter.

        `targets` is a list of module names, or a pattern for full module names. `new` as in `add_adapter`.
        """
        ...

    def hidden(self, hardware: Hardware) -> Hidden:
        """The function that computes the last hidden states of its models."""
        ...

    own_checkpointing: bool
    needs_bitsandbytes: bool
    """Whether it imports bitsandbytes for every job."""


def load(
    backend: Backend,
    spec: JobSpec,
    directory: Path,
    hardware: Hardware,
    trust_remote_code: bool,
    resumed: bool = False,
    start: Path | None = None,
) -> Loaded:
    """Base model, tokenizer and adapter from the base model's folder.

    The adapter's first values are those of the file `start`, or depend on the job's seed only, and not on backend or
    device. Raises `PermanentError` or `UnfitMachineError` with one sentence.
    """
    precision = precision_of(hardware)
    base_model.check_code(spec.base_model, directory, trust_remote_code)
    base_model.check_adapter(spec, directory)
    base_model.check_quantisation(spec.base_model, directory, spec.adapter == "qlora")
    needed = base_model.load_bytes(spec.base_model, directory, spec.adapter == "qlora", precision)
    check_fit(spec.base_model, needed, hardware)
    with ThreadPoolExecutor(1) as aside:
        digest = aside.submit(base_model.sha256, directory)
        tokenizer = load_tokenizer(directory, trust_remote_code, spec.own_template)
        known = len(tokenizer)
        new = new_tokens.add_to(tokenizer, spec.tokens, spec.added_tokens_overrides)
        model = backend.base(spec, directory, hardware, precision, trust_remote_code)
        keep_trainable_layout(model)
        if not resumed:
            check_quantised(model, spec)
        new_tokens.make_room(model, new, known)
        adapted = add_adapter(backend, model, spec, resumed, new)
        if start is not None:
            continued.fill(adapted, start, spec.base_model)
        base_sha256 = digest.result()
    if hardware.device == "cuda":
        # Loading quantises in blocks of sizes that training never requests, so free them.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return Loaded(
        model=adapted,
        tokenizer=tokenizer,
        precision=precision,
        base_sha256=base_sha256,
        tokenizer_sha256=base_model.tokenizer_sha256(tokenizer),
        hidden=backend.hidden(hardware),
        frozen=continued.frozen(adapted, spec) if start is not None else {},
        own_checkpointing=backend.own_checkpointing and hardware.device == "cuda",
    )


def add_adapter(
    backend: Backend, model: Any, spec: JobSpec, resumed: bool = False, new: Sequence[int] = ()
) -> PeftModel:
    """Add a new fp32 LoRA adapter to `model`. Raises `PermanentError` if a target matches no module.

    `new` are the numbers of the job's own tokens, whose rows the model has.

    The check is skipped if `resumed`, because earlier versions accepted jobs with misspelt targets.
    """
    scope = _language_model(model)
    linear = {name for name, module in model.named_modules() if _is_linear(module) and name.startswith(scope)}
    head = model.get_output_embeddings()
    wanted = spec.lora_target_modules
    if spec.module_pattern:
        _check_pattern(model, spec, scope, linear)
        wanted = (spec.module_pattern,)
    elif isinstance(wanted, str):
        wanted = sorted({n.rpartition(".")[2] for n in linear if model.get_submodule(n) is not head})
        wanted = target_parameters.for_linear(wanted, _kind(model), spec.lora_target_parameters)
    elif not resumed:
        _check_targets(model, wanted, scope, linear, spec.base_model)
    target_parameters.check(model, spec.lora_target_parameters, spec.base_model)
    _check_layers(model, spec)
    _check_tokens(model, spec)
    targets = list(wanted)
    pattern = rf"{re.escape(scope)}(.*\.)?({'|'.join(re.escape(target) for target in targets)})"
    if spec.module_pattern:
        pattern = f"(?={re.escape(scope)})(?:{spec.module_pattern})" if scope else spec.module_pattern
    try:
        adapted = backend.adapted(model, spec, pattern if scope or spec.module_pattern else targets, new)
    except (ValueError, LookupError, TypeError, AttributeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise PermanentError(f"an adapter cannot be added to {targets} of {spec.base_model}: {reason}") from error
    if words := target_parameters.notice(adapted, spec.lora_target_parameters):
        logging.getLogger(__name__).warning("%s", words)
    make_fp32(adapted)
    start_adapter(adapted, spec.seed)
    return adapted


def _language_model(model: Any) -> str:
    """Prefix of the language model in a multimodal model, such as `model.language_model.`, else "".

    Images and sounds are never trained on, so an adapter on their towers would learn nothing.
    """
    if model.config.get_text_config() is model.config:
        return ""
    decoder = model.get_decoder()
    return next((f"{name}." for name, module in model.named_modules() if name and module is decoder), "")


def _check_layers(model: Any, spec: JobSpec) -> None:
    """PEFT adapts the other layers and says nothing."""
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    if layers is not None and any(layer >= layers for layer in spec.lora_layers_to_transform):
        last = max(spec.lora_layers_to_transform)
        raise PermanentError(f"lora_layers_to_transform names layer {last}, but {spec.base_model} has {layers}")


def _kind(model: Any) -> str:
    return str(getattr(model.config.get_text_config(), "model_type", ""))


def _check_tokens(model: Any, spec: JobSpec) -> None:
    rows, highest = model.get_input_embeddings().weight.shape[0], max(spec.peft_trainable_token_indices, default=-1)
    if highest >= rows:
        raise PermanentError(f"peft_trainable_token_indices names token {highest}, but {spec.base_model} has {rows}")


def _check_pattern(model: Any, spec: JobSpec, scope: str, linear: set[str]) -> None:
    """Raise `PermanentError` for a pattern that takes too long, or matches nothing or what cannot have an adapter."""
    names = {name: module for name, module in model.named_modules() if name and name.startswith(scope)}
    inner = sorted(name for name in linear if names[name] is not model.get_output_embeddings())
    try:
        check(spec.module_pattern, sorted(names), inner, names.keys() - set(inner))
    except PatternError as error:
        raise PermanentError(f"lora_target_modules: {error}") from error


def _check_targets(model: Any, wanted: Sequence[str], scope: str, linear: set[str], base_model: str) -> None:
    """Raise `PermanentError` for a target that matches no module or matches the head."""

    def match(name: str, target: str) -> bool:
        return name == target or name.endswith(f".{target}")

    there = {name: module for name, module in model.named_modules() if name.startswith(scope)}
    nowhere = [target for target in wanted if not any(match(name, target) for name in there)]
    head = model.get_output_embeddings()
    if at_head := [t for t in wanted if any(match(n, t) for n, module in model.named_modules() if module is head)]:
        raise PermanentError(
            f"lora_target_modules {at_head} is the head of {base_model}, which cannot be trained; leave it out"
        )
    if nowhere:
        names = ", ".join(sorted({n.rpartition(".")[2] for n in linear if model.get_submodule(n) is not head})[:12])
        raise PermanentError(
            f"lora_target_modules {nowhere} match nothing in {base_model}; its linear modules are: {names}"
        )


@torch.no_grad()
def start_adapter(model: torch.nn.Module, seed: int) -> None:
    """Draw the adapter's first values as PEFT does, on the CPU, each from seed and name only.

    For a matrix A is uniform and B zero. For an embedding A is zero and B normal.
    """
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            parameter.zero_()
        elif "lora_A" in name or "lora_embedding_B" in name:
            chance = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
            values = torch.empty(parameter.shape)
            if "lora_A" in name:
                torch.nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=chance)
            else:
                torch.nn.init.normal_(values, generator=chance)
            parameter.copy_(values)


def make_fp32(model: torch.nn.Module) -> None:
    """Cast every trainable parameter to fp32.

    Needed in every session. SFTTrainer casts the adapter of a quantised model to bf16, which the fp16 loss scaler does
    not support and a resumed session would not repeat.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def keep_trainable_layout(model: torch.nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights for inference.

    On CPUs with AVX512-BF16 the first evaluation would repack them for a kernel without a backward pass. Every later
    training step would then silently lose the gradient through the base model.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # pyright: ignore[reportArgumentType] - a plain attribute


def check_quantised(model: torch.nn.Module, spec: JobSpec) -> None:
    """Raise `PermanentError` if the job asks for 4 bits and no weight has them."""
    if spec.adapter == "qlora" and not any(type(module).__name__ == "Linear4bit" for module in model.modules()):
        raise PermanentError(
            f"{spec.base_model} has no layer that can be quantised to 4 bits; set adapter to lora or use another model"
        )


def check_fit(name: str, needed: int, hardware: Hardware) -> None:
    """Raise `UnfitMachineError` if a base model of `needed` bytes does not fit into this machine's memory."""
    if hardware.device == "cuda":
        free, place = torch.cuda.mem_get_info(0)[0], f"GPU memory of {hardware.name}"
    else:
        free, place = available_ram(), "free memory of this machine"
    if free is not None and needed > free:
        raise UnfitMachineError(
            f"base model {name} needs about {needed / 2**30:.1f} GiB but the {place} is {free / 2**30:.1f} GiB; "
            "use a larger machine, a smaller model, or adapter: qlora",
            causes.MEMORY,
        )


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's transposed linear layer


def select(wanted: str, hardware: Hardware, world: int = 1) -> Backend:
    """The backend for a job's `backend` key. `auto` is unsloth if it can run here, else hf.

    `world` is the number of GPUs that train together. Raises `UnfitMachineError` if this machine's GPU cannot be used
    or lacks what the job needs.
    """
    from worker.training.backends.hf import HfBackend
    from worker.training.backends.unsloth import UnslothBackend

    check_card(hardware)
    obstacle = unsloth_obstacle(hardware, world)
    if wanted == "unsloth" and obstacle:
        raise UnfitMachineError(
            f"backend unsloth cannot run here: {obstacle}; set backend to auto or hf", cause=causes.GPU
        )
    return HfBackend() if wanted == "hf" or obstacle else UnslothBackend()


def install_unsloth(
    wanted: str,
    hardware: Hardware,
    world: int = 1,
    *,
    bring: Callable[[Path | None, Path | None], str] = install.unsloth,
) -> str:
    """Install unsloth if it is the only thing missing. Returns the reason if that failed, or "".

    Only done if the driver sets `WORKER_MAY_INSTALL` (a folder of staged wheels, or `1` for pip's index), because
    nothing is installed into a person's environment without consent. If the session has a folder of packages, unsloth
    gets a folder beside it.
    """
    check_card(hardware)
    source = os.environ.get("WORKER_MAY_INSTALL", "")
    if not source or wanted == "hf" or unsloth_obstacle(hardware, world) != _NOT_INSTALLED:
        return ""
    return _install_unsloth(bring, source, os.environ.get(package_folder.FOLDER, ""))


@cache
def _install_unsloth(bring: Callable[[Path | None, Path | None], str], source: str, folder: str) -> str:
    """Cached: a failed import cannot succeed later in the same session."""
    own = Path(f"{folder}-unsloth") if folder else None
    problem = bring(None if source == "1" else Path(source), own)
    if own is not None and not problem:
        sys.path.insert(0, str(own))
    importlib.invalidate_caches()
    return problem


def check_card(hardware: Hardware) -> None:
    """Raise `UnfitMachineError` for an unusable GPU, so that the job does not silently train on the CPU."""
    if hardware.trouble:
        raise UnfitMachineError(hardware.trouble, cause=causes.GPU)
    if hardware.device == "cuda" and (hardware.compute_capability or OLDEST) < OLDEST:
        have = "{}.{}".format(*(hardware.compute_capability or (0, 0)))
        raise UnfitMachineError(
            f"{hardware.name} has compute capability {have}, too old for the kernels that training needs (7.0 and "
            "newer); use a T4 or a newer card",
            cause=causes.GPU,
        )


def unsloth_obstacle(hardware: Hardware, world: int) -> str:
    """Why unsloth cannot run on this machine, or ""."""
    if hardware.device != "cuda":
        return "this machine has no GPU"
    if world > 1:
        return f"it trains on one GPU and this session uses {world}"
    if find_spec("unsloth") is None:
        return _NOT_INSTALLED
    return ""
