"""Whether what was installed trains on this machine at all, found out in seconds and before a model is fetched.

`python -m worker.training.smoke` tries the machine at hand; with RANK WORLD ADDRESS it is one of several processes.
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

from worker.agent.hardware import probe
from worker.shared import causes
from worker.training import unusable
from worker.training.interface import UnfitMachineError

if TYPE_CHECKING:
    from worker.shared.messages import Hardware, JobSpec

LIBRARIES = ("datasets", "transformers", "accelerate", "peft", "trl", "bitsandbytes")
PATIENCE_S = 180.0
"""For the processes of several GPUs."""
SIDE = 4
"""Rows and columns of the layer that takes a LoRA adapter."""
WIDE = 64
"""Those of the 4-bit layer: one block of its quantisation."""


def check(spec: JobSpec) -> dict[str, float]:
    """Try what the job's training needs on this machine; see `try_all`."""
    from worker.training.ranks import world_size

    hardware = probe()
    return try_all(hardware, spec.backend, world_size(spec, hardware))


def try_all(hardware: Hardware, backend: str, world: int) -> dict[str, float]:
    """Try everything that training needs, with almost nothing; returns the seconds that each part took.

    `world` is the number of GPUs that train together. What is imported here is there for the training afterwards.
    Raises `UnfitMachineError` with the library's own words.
    """
    from worker.training.determinism import insist_on_determinism
    from worker.training.precision import precision_of

    took = _Clock()
    insist_on_determinism()  # before the first product: cuBLAS reads once how it is to work
    unusable.hide()
    with several(world, hardware.device) if world > 1 else contextlib.nullcontext() as wait:
        took("backend", lambda: _bring_in(hardware, backend, world))
        for name in LIBRARIES:
            took(f"import of {name}", lambda name=name: importlib.import_module(name))
        took("import of the trainer", lambda: importlib.import_module("worker.training.trainer"))
        took("LoRA", lambda: lora_step(hardware.device))
        if wait is None:
            took("4-bit product", lambda: four_bit_product(hardware.device, precision_of(hardware)))
        else:
            took(f"4-bit product and all-reduce on {world} GPUs", wait)
    return took.seconds


class _Clock:
    """Runs one part after the other, and says which of them went wrong."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, part: str, work: Callable[[], Any]) -> None:
        began = time.monotonic()
        try:
            work()
        except UnfitMachineError:
            raise
        except Exception as error:
            words = " ".join(str(error).split())[:600] or "no reason was given"
            raise UnfitMachineError(
                f"the training libraries do not work on this machine's image ({part}: {type(error).__name__}: {words}); "
                "run trainhop doctor to see what differs, and report this sentence",
                cause=causes.SMOKE,
            ) from error
        self.seconds[part] = round(time.monotonic() - began, 2)


def _bring_in(hardware: Hardware, wanted: str, world: int) -> None:
    """The backend comes before the libraries, because it may patch them as they are imported."""
    from worker.training.backends import base

    base.install_unsloth(wanted, hardware, world)
    base.select(wanted, hardware, world).bring_in(hardware)


def lora_step(device: str) -> None:
    """One forward and backward pass through a LoRA adapter on a 4 x 4 layer."""
    import torch
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=_used(device)):
        layers = torch.nn.Sequential(torch.nn.Linear(SIDE, SIDE)).to(device)
        model: Any = get_peft_model(layers, LoraConfig(r=2, target_modules=["0"]))  # pyright: ignore[reportArgumentType]
        model(torch.ones(2, SIDE, device=device)).sum().backward()
    if not any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters()):
        raise RuntimeError("no gradient came back through the adapter")


def four_bit_product(device: str, precision: str) -> None:
    """One product with an NF4 layer in the precision of training, and the gradient that flows through it."""
    import torch
    from bitsandbytes.nn import Linear4bit

    from worker.training.backends.base import keep_trainable_layout
    from worker.training.precision import DTYPES

    dtype = DTYPES[precision]
    with torch.random.fork_rng(devices=_used(device)):
        layer = Linear4bit(WIDE, WIDE, bias=False, compute_dtype=dtype, quant_type="nf4").to(device)
        keep_trainable_layout(layer)
        given = torch.ones(2, WIDE, device=device, dtype=dtype, requires_grad=True)
        layer(given).float().sum().backward()
    if given.grad is None or not bool(torch.isfinite(given.grad).all()) or not bool(given.grad.abs().sum() > 0):
        raise RuntimeError("no gradient came back through the 4-bit layer")


def _used(device: str) -> list[int]:
    """The GPU whose random numbers are put back afterwards; asking for those of others would take memory there."""
    return [0] if device == "cuda" else []


@contextlib.contextmanager
def several(world: int, device: str, patience_s: float = PATIENCE_S) -> Iterator[Callable[[], None]]:
    """A short-lived process per GPU, so that no memory stays taken: each tries a 4-bit product, and a sum over all.

    They run beside whatever is done inside the block; the function that it is given waits for them.
    """
    from worker.training.distributed import _free_address

    address, until = _free_address(), time.monotonic() + patience_s
    with tempfile.TemporaryDirectory(prefix="trainhop-") as folder:
        outputs = [Path(folder, f"{rank}.log") for rank in range(world)]
        members = [_member(rank, world, address, device, output) for rank, output in enumerate(outputs)]
        try:
            yield lambda: _wait(members, outputs, until)
        finally:
            for member in members:
                member.kill()
                member.wait()


def _member(rank: int, world: int, address: str, device: str, output: Path) -> subprocess.Popen[bytes]:
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    ours = {
        "CUDA_VISIBLE_DEVICES": visible[rank] if len(visible) > rank else str(rank),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, "-m", "worker.training.smoke", str(rank), str(world), address, device]
    with output.open("wb") as log:
        return subprocess.Popen(command, env=os.environ | ours, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _wait(members: list[subprocess.Popen[bytes]], outputs: list[Path], until: float) -> None:
    """Until all have ended well; the first that does not speaks for all, because the others wait for it."""
    while any(member.poll() is None for member in members):
        if time.monotonic() > until or any(member.poll() for member in members):
            break
        time.sleep(0.05)
    for member, output in zip(members, outputs, strict=True):
        if member.poll():
            raise RuntimeError((output.read_text(errors="replace").strip().splitlines() or ["no reason was given"])[-1])
    if any(member.poll() is None for member in members):
        raise TimeoutError("the processes of several GPUs did not find each other in time")


def _be_member(rank: int, world: int, address: str, device: str) -> None:
    import torch

    from worker.training.distributed import team
    from worker.training.precision import precision_of

    unusable.hide()
    hardware = probe()
    torch.manual_seed(0)
    with team(rank, world, address, 0, device) as group:
        four_bit_product(device, precision_of(hardware))
        if (found := group.sum([1.0])) != [float(world)]:
            raise RuntimeError(f"{world} processes summed 1 to {found[0]}")


def main(arguments: list[str]) -> int:
    """Try the machine, or be one of several processes; the exit code is 0 if it trains."""
    if arguments:
        rank, world, address, device = arguments
        _be_member(int(rank), int(world), address, device)
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
    sys.exit(main(sys.argv[1:]))
