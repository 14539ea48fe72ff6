"""Loading a base model and putting the adapter on it: what every backend shares, and which one a machine gets."""

from __future__ import annotations

import importlib
import math
import os
import re
import sys
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from worker.agent.hardware import available_ram
from worker.shared import causes, package_folder
from worker.shared import packages as install
from worker.training import base_model
from worker.training.encoding import load_tokenizer
from worker.training.interface import PermanentError, UnfitMachineError
from worker.training.loss import Hidden
from worker.training.precision import precision_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from worker.shared.messages import Hardware, JobSpec

_NOT_INSTALLED = "it is not installed"
OLDEST = (7, 0)
"""Compute capability below which neither triton nor today's builds of torch and bitsandbytes have kernels."""


@dataclass(frozen=True)
class Loaded:
    """A base model with a fresh fp32 adapter on it, its tokenizer, and the hashes that identify both."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    precision: str
    base_sha256: str
    tokenizer_sha256: str
    hidden: Hidden
    own_checkpointing: bool = False
    """Whether the model does its own gradient checkpointing, so that the trainer must not switch on another."""


class Backend(Protocol):
    """Loads models for one job. `name` goes into every manifest."""

    name: str

    def bring_in(self, hardware: Hardware) -> None:
        """Import what has to come before transformers and TRL."""
        ...

    def base(self, spec: JobSpec, directory: Path, hardware: Hardware, precision: str, trust: bool) -> Any:
        """The frozen base model on the machine's device. Raises `PermanentError` if it cannot be loaded."""
        ...

    def adapted(self, model: Any, spec: JobSpec, targets: list[str] | str) -> PeftModel:
        """The base model with a LoRA adapter on the modules named `targets`, or whose whole name the pattern `targets` matches."""
        ...

    def hidden(self, hardware: Hardware) -> Hidden:
        """How to get the last hidden states of its models."""
        ...

    own_checkpointing: bool


def load(
    backend: Backend,
    spec: JobSpec,
    directory: Path,
    hardware: Hardware,
    trust_remote_code: bool,
    resumed: bool = False,
) -> Loaded:
    """Base model, tokenizer and adapter, from the base model's folder. Raises `PermanentError` or `UnfitMachineError` in one sentence.

    The adapter's first values are a function of the job's seed alone, whatever backend and device make it.
    """
    precision = precision_of(hardware)
    base_model.check_code(spec.base_model, directory, trust_remote_code)
    base_model.check_quantisation(spec.base_model, directory, spec.adapter == "qlora")
    needed = base_model.load_bytes(spec.base_model, directory, spec.adapter == "qlora", precision)
    check_fit(spec.base_model, needed, hardware)
    with ThreadPoolExecutor(1) as aside:
        digest = aside.submit(base_model.sha256, directory)
        tokenizer = load_tokenizer(directory, trust_remote_code)
        model = backend.base(spec, directory, hardware, precision, trust_remote_code)
        keep_trainable_layout(model)
        adapted = add_adapter(backend, model, spec, resumed)
        base_sha256 = digest.result()
    if hardware.device == "cuda":
        # Loading quantises in pieces, whose memory is of no size that training asks for.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return Loaded(
        model=adapted,
        tokenizer=tokenizer,
        precision=precision,
        base_sha256=base_sha256,
        tokenizer_sha256=base_model.tokenizer_sha256(tokenizer),
        hidden=backend.hidden(hardware),
        own_checkpointing=backend.own_checkpointing and hardware.device == "cuda",
    )


def add_adapter(backend: Backend, model: Any, spec: JobSpec, resumed: bool = False) -> PeftModel:
    """Put a fresh LoRA adapter on `model`, in fp32. Raises `PermanentError` if a target of its matches no module.

    A job that began under a version which let a misspelt target pass is `resumed` as it began.
    """
    scope = _language_model(model)
    linear = {name for name, module in model.named_modules() if _is_linear(module) and name.startswith(scope)}
    head = model.get_output_embeddings()
    wanted = spec.lora_target_modules
    if isinstance(wanted, str):
        wanted = sorted({n.rpartition(".")[2] for n in linear if model.get_submodule(n) is not head})
    elif not resumed:
        _check_targets(model, wanted, scope, linear, spec.base_model)
    targets = list(wanted)
    pattern = rf"{re.escape(scope)}(.*\.)?({'|'.join(re.escape(target) for target in targets)})"
    try:
        adapted = backend.adapted(model, spec, pattern if scope else targets)
    except ValueError as error:
        reason = " ".join(str(error).split())[:400]
        raise PermanentError(f"no adapter can be put on {targets} of {spec.base_model}: {reason}") from error
    make_fp32(adapted)
    start_adapter(adapted, spec.seed)
    return adapted


def _language_model(model: Any) -> str:
    """Where in a model with further towers its language model begins, as `model.language_model.`; else nothing.

    Images and sounds are never trained on, so an adapter on what reads them would learn nothing.
    """
    if model.config.get_text_config() is model.config:
        return ""
    decoder = model.get_decoder()
    return next((f"{name}." for name, module in model.named_modules() if name and module is decoder), "")


def _check_targets(model: Any, wanted: Sequence[str], scope: str, linear: set[str], base_model: str) -> None:
    """Raise `PermanentError` for a target that is in no module's name, or that is the head."""

    def match(name: str, target: str) -> bool:
        return name == target or name.endswith(f".{target}")

    there = {name: module for name, module in model.named_modules() if name.startswith(scope)}
    nowhere = [target for target in wanted if not any(match(name, target) for name in there)]
    head = model.get_output_embeddings()
    if at_head := [t for t in wanted if any(match(n, t) for n, module in model.named_modules() if module is head)]:
        raise PermanentError(
            f"lora_target_modules {at_head} is the head of {base_model}, which is not trained; leave it out"
        )
    if nowhere:
        names = ", ".join(sorted({n.rpartition(".")[2] for n in linear if model.get_submodule(n) is not head})[:12])
        raise PermanentError(
            f"lora_target_modules {nowhere} match nothing in {base_model}; its linear modules are: {names}"
        )


@torch.no_grad()
def start_adapter(model: torch.nn.Module, seed: int) -> None:
    """Draw the adapter's first values as PEFT does, on the CPU, each from seed and name alone.

    Of a matrix A is uniform and B zero; of an embedding A is zero and B normal.
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
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's, which is one transposed


def select(wanted: str, hardware: Hardware, world: int = 1) -> Backend:
    """The backend of a job's `backend` key: for `auto` unsloth where it can run, else hf, which runs everywhere.

    `world` is the number of GPUs that train together.
    Raises `UnfitMachineError` in words if this machine's GPU cannot be used or lacks what the job asks for.
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


def install_unsloth(wanted: str, hardware: Hardware, world: int = 1) -> str:
    """Install unsloth if that is all it lacks and the machine is this session's own; returns why it could not be, or nothing.

    A driver says so with `WORKER_MAY_INSTALL` (a folder of staged wheels, or `1` for pip's index): nothing is ever put into
    an environment of a person's own unasked. Where the session has a folder of packages it goes beside that one.
    """
    check_card(hardware)
    source = os.environ.get("WORKER_MAY_INSTALL", "")
    if not source or wanted == "hf" or unsloth_obstacle(hardware, world) != _NOT_INSTALLED:
        return ""
    return _install_unsloth(source, os.environ.get(package_folder.FOLDER, ""))


@cache
def _install_unsloth(source: str, folder: str) -> str:
    """Once per session: what could not be imported before cannot be imported now."""
    own = Path(f"{folder}-unsloth") if folder else None
    problem = install.unsloth(None if source == "1" else Path(source), own)
    if own is not None and not problem:
        sys.path.insert(0, str(own))
    importlib.invalidate_caches()
    return problem


def check_card(hardware: Hardware) -> None:
    """Raise `UnfitMachineError` for a GPU that is there but of no use: nobody wants a CPU to take its place unnoticed."""
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
    """Why unsloth cannot run on this machine, or nothing."""
    if hardware.device != "cuda":
        return "this machine has no GPU"
    if world > 1:
        return f"it trains on one GPU and this session uses {world}"
    if find_spec("unsloth") is None:
        return _NOT_INSTALLED
    return ""
