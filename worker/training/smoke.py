"""The smoke step: tests within seconds, before a model is downloaded, whether the packages train on this machine.

`python -m worker.training.smoke` tests this machine. With RANK WORLD ADDRESS DEVICE WEIGHTS it is one of several
processes.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.agent.hardware import only_gpu, probe
from worker.shared import causes
from worker.shared.imports import quick_imports
from worker.shared.process import free_address, last_line, leave, tied
from worker.training import unusable
from worker.training.interface import UnfitMachineError

if TYPE_CHECKING:
    from worker.shared.job_spec import JobSpec
    from worker.shared.manifest import Hardware
    from worker.training.backends.base import Backend

LIBRARIES = ("datasets", "transformers", "accelerate", "peft", "trl")
PATIENCE_S = 180.0
"""Maximum seconds for the processes of several GPUs."""
SIDE = 4
"""Rows and columns of the layer with a LoRA adapter."""
WIDE = 64
"""Rows and columns of the 4-bit layer: one block of its quantisation."""


def check(spec: JobSpec) -> dict[str, float]:
    """Test what the job's training needs on this machine. See `try_all`."""
    from worker.training.ranks import world_size

    hardware = probe()
    four_bit = unusable.uses_bitsandbytes(spec)
    return try_all(hardware, spec.backend, world_size(spec, hardware), four_bit=four_bit)


def try_all(hardware: Hardware, wanted: str, world: int, *, four_bit: bool = True) -> dict[str, float]:
    """Test everything that training needs, with tiny tensors. Returns the seconds of each part.

    `wanted` is the backend that the job asks for, `world` the number of GPUs that train together, and `four_bit`
    whether the job needs bitsandbytes. The imported libraries stay loaded for training. Raises `UnfitMachineError` with
    the library's own message.
    """
    from worker.training.determinism import require_deterministic_kernels
    from worker.training.precision import precision_of

    took = _Clock()
    require_deterministic_kernels()  # before the first product: cuBLAS reads once how it is to work

    unusable.hide()
    together = several(world, hardware.device, four_bit) if world > 1 else contextlib.nullcontext()
    with quick_imports(), together as wait:
        backend = took("backend", lambda: _load_backend(hardware, wanted, world))
        four_bit = four_bit or backend.needs_bitsandbytes
        if not four_bit:
            unusable.hide_bitsandbytes()
        for name in (*LIBRARIES, *(["bitsandbytes"] if four_bit else [])):
            took(f"import of {name}", lambda name=name: importlib.import_module(name))
        took("import of the trainer", lambda: importlib.import_module("worker.training.trainer"))
        took("LoRA", lambda: lora_step(hardware.device))
        if wait is not None:
            took(f"processes of {world} GPUs", wait)
        elif four_bit:
            took("4-bit product", lambda: four_bit_product(hardware.device, precision_of(hardware)))
    return took.seconds


class _Clock:
    """Times the parts one after another, and names the part that failed."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, part: str, work: Callable[[], Any]) -> Any:
        began = time.monotonic()
        try:
            result = work()
        except UnfitMachineError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:600] or "no reason was given"
            raise UnfitMachineError(
                f"the training libraries do not work on this machine's image "
                f"({part}: {type(error).__name__}: {reason}); "
                "find the cause with trainhop doctor, and report this message",
                cause=causes.SMOKE,
            ) from error
        self.seconds[part] = round(time.monotonic() - began, 2)
        return result


def _load_backend(hardware: Hardware, wanted: str, world: int) -> Backend:
    """Load the backend before the libraries, because it may patch them at import."""
    from worker.training.backends import base

    base.install_unsloth(wanted, hardware, world)
    backend = base.select(wanted, hardware, world)
    backend.import_libraries(hardware)
    return backend


def lora_step(device: str) -> None:
    """One forward and backward pass through a LoRA adapter on a 4 x 4 layer."""
    import torch
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=_used(device)):
        layers = torch.nn.Sequential(torch.nn.Linear(SIDE, SIDE)).to(device)
        model: Any = get_peft_model(layers, LoraConfig(r=2, target_modules=["0"]))  # pyright: ignore[reportArgumentType]
        model(torch.ones(2, SIDE, device=device)).sum().backward()
    if not any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters()):
        raise RuntimeError("the adapter has no gradient")


def four_bit_product(device: str, precision: str) -> None:
    """One forward and backward pass through an NF4 layer in the training precision."""
    import torch
    from bitsandbytes.nn import Linear4bit

    from worker.training.backends.base import keep_trainable_layout
    from worker.training.precision import DTYPES

    dtype = DTYPES[precision]
    with torch.random.fork_rng(devices=_used(device)):
        layer = Linear4bit(WIDE, WIDE, bias=False, compute_dtype=dtype, quant_type="nf4").to(device)
        keep_trainable_layout(layer)
        inputs = torch.ones(2, WIDE, device=device, dtype=dtype, requires_grad=True)
        layer(inputs).float().sum().backward()
    if inputs.grad is None or not bool(torch.isfinite(inputs.grad).all()) or not bool(inputs.grad.abs().sum() > 0):
        raise RuntimeError("the 4-bit layer has no gradient")


def _used(device: str) -> list[int]:
    """The GPU of the random state that is restored afterwards.

    Reading that of other GPUs would allocate memory there.
    """
    return [0] if device == "cuda" else []


@contextlib.contextmanager
def several(
    world: int, device: str, four_bit: bool = True, patience_s: float = PATIENCE_S
) -> Iterator[Callable[[], None]]:
    """Start a short-lived process per GPU, each of which tests a sum over all and, with `four_bit`, a 4-bit product.

    Processes are used so that no GPU memory stays allocated. They run in parallel with the block. The yielded function
    waits for them.
    """
    address, until = free_address(), time.monotonic() + patience_s
    with tempfile.TemporaryDirectory(prefix="trainhop-") as folder:
        outputs = [Path(folder, f"{rank}.log") for rank in range(world)]
        task = (address, device, "4-bit" if four_bit else "16-bit")
        members = [_member(rank, world, task, output) for rank, output in enumerate(outputs)]
        try:
            yield lambda: _wait(members, outputs, until)
        finally:
            for member in members:
                member.kill()
                member.wait()


def _member(rank: int, world: int, task: tuple[str, ...], output: Path) -> subprocess.Popen[bytes]:
    variables = only_gpu(rank) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "worker.training.smoke", str(rank), str(world), *task]
    with output.open("wb") as log:
        return subprocess.Popen(
            tied(command), env=os.environ | variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def _wait(members: list[subprocess.Popen[bytes]], outputs: list[Path], until: float) -> None:
    """Wait until all have succeeded. The first failure is reported, because the others wait for it."""
    while any(member.poll() is None for member in members):
        if time.monotonic() > until or any(member.poll() for member in members):
            break
        time.sleep(0.05)
    for member, output in zip(members, outputs, strict=True):
        if member.poll():
            raise RuntimeError(last_line(output.read_text(errors="replace")))
    if any(member.poll() is None for member in members):
        raise TimeoutError("the processes of the GPUs could not connect to each other in time")


def _run_member(rank: int, world: int, address: str, device: str, weights: str) -> None:
    import torch

    from worker.training.distributed import team
    from worker.training.precision import precision_of

    unusable.hide()
    hardware = probe()
    torch.manual_seed(0)
    with team(rank, world, address, 0, device) as group:
        if weights == "4-bit":
            four_bit_product(device, precision_of(hardware))
        if (total := group.sum([1.0])) != [float(world)]:
            raise RuntimeError(f"{world} processes summed 1 to {total[0]}")


def main(arguments: list[str]) -> int:
    """Test the machine, or be one of several processes. Exit code 0 if it trains."""
    if arguments:
        rank, world, *task = arguments
        _run_member(int(rank), int(world), *task)
        return 0
    hardware = probe()
    try:
        took = try_all(hardware, "hf", hardware.count if hardware.device == "cuda" else 1)
    except UnfitMachineError as error:
        print(error, flush=True)
        return 1
    print(json.dumps(took), flush=True)
    return 0


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
