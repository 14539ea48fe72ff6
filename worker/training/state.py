"""Everything a run holds at the end of a step, as named NumPy arrays and JSON, and the way back.

Names: `adapter.<parameter>`, `optimizer.<parameter>.<key>` (as the optimiser holds it, 8-bit codes included),
`rng.python`, `rng.numpy`, `rng.torch`, `rng.cuda.<device>`. What is no array goes into the manifest's `state`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from worker.shared.checkpoint_file import CheckpointError
from worker.training.hostcopy import HostCopy, Ready

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Run:
    """The live objects whose state is carried over. `optimizer` is the bare one, outside any wrapper."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler | None = None


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by name, in the model's own order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def parameters_sha256(model: nn.Module) -> str:
    """Hash over the names and shapes of the trainable parameters."""
    shapes = sorted((name, list(parameter.shape)) for name, parameter in trainable(model).items())
    return hashlib.sha256(json.dumps(shapes).encode()).hexdigest()


def snapshot(run: Run, copier: HostCopy) -> tuple[Arrays, dict[str, Any], Ready]:
    """Host copies of all tensors, the JSON part, and what to wait for before reading the copies.

    On return nothing refers to live memory: training may go on at once.
    """
    parameters = trainable(run.model)
    tensors = {f"adapter.{name}": value.data for name, value in parameters.items()}
    scalars: Arrays = {}
    idle = []
    for name, parameter in parameters.items():
        held = run.optimizer.state.get(parameter) or {}
        if not held:
            idle.append(name)
        for key, value in held.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{name}.{key}"] = value
            else:
                scalars[f"optimizer.{name}.{key}"] = _array(value)
    arrays, ready = copier.take(tensors)
    rng_arrays, rng = capture_rng()
    state = {
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in run.optimizer.param_groups],
        "without_state": idle,
        "scheduler": dict(run.scheduler.state_dict()),
        "scaler": run.scaler.state_dict() if run.scaler is not None else None,
        "rng": rng,
    }
    # A round trip through JSON here, not at the write, finds a value that JSON cannot hold while the run still lives.
    return arrays | scalars | rng_arrays, json.loads(json.dumps(state)), ready


def restore(run: Run, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
    """Put a snapshot back in place. Raises `CheckpointError` unless names, shapes and types match one for one."""
    idle = set(state.get("without_state", ()))
    targets = {f"adapter.{name}": parameter.data for name, parameter in trainable(run.model).items()}
    _materialise(run.optimizer)
    scalars: dict[str, tuple[dict[str, Any], str]] = {}
    for name, parameter in trainable(run.model).items():
        if name in idle:
            run.optimizer.state.pop(parameter, None)
            continue
        for key, value in run.optimizer.state[parameter].items():
            full = f"optimizer.{name}.{key}"
            if isinstance(value, torch.Tensor):
                targets[full] = value
            else:
                scalars[full] = (run.optimizer.state[parameter], key)
    _check_names(targets.keys() | scalars.keys(), arrays)
    for name, target in targets.items():
        _copy(name, target, arrays[name])
    for name, (held, key) in scalars.items():
        held[key] = type(held[key])(arrays[name].item())
    try:
        _restore_schedule(run, state)
        restore_rng(arrays, state["rng"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint's state cannot be read: {type(error).__name__}: {error}") from error


def _materialise(optimizer: torch.optim.Optimizer) -> None:
    """Make the optimiser allocate all its state, by a step that changes no parameter.

    Only the optimiser knows which tensors it holds, in which type, and in which kind of memory (paged ones, say).
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    rates = [group["lr"] for group in optimizer.param_groups]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    type(optimizer).step(optimizer)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for parameter in parameters:
        parameter.grad = None


def _check_names(expected: set[str], arrays: Mapping[str, np.ndarray]) -> None:
    found = {name for name in arrays if not name.startswith("rng.")}
    if missing := sorted(expected - found):
        raise CheckpointError(f"the checkpoint lacks {len(missing)} tensors, the first being {missing[0]}")
    if surplus := sorted(found - expected):
        raise CheckpointError(f"the checkpoint has {len(surplus)} tensors too many, the first being {surplus[0]}")


def _copy(name: str, target: torch.Tensor, array: np.ndarray) -> None:
    source = _tensor(array)
    if source.dtype != target.dtype or source.shape != target.shape:
        raise CheckpointError(
            f"the checkpoint's tensor {name} is {source.dtype} {tuple(source.shape)}, "
            f"the run needs {target.dtype} {tuple(target.shape)}"
        )
    with torch.no_grad():
        target.copy_(source)


def _restore_schedule(run: Run, state: Mapping[str, Any]) -> None:
    groups = run.optimizer.param_groups
    if len(groups) != len(state["groups"]):
        raise CheckpointError(f"the checkpoint has {len(state['groups'])} parameter groups, the run {len(groups)}")
    for group, saved in zip(groups, state["groups"], strict=True):
        if saved.keys() != group.keys() - {"params"}:
            names = sorted(saved.keys() ^ (group.keys() - {"params"}))
            raise CheckpointError(f"the checkpoint's optimiser settings differ in {', '.join(names)}")
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()})
    run.scheduler.load_state_dict(dict(state["scheduler"]))
    # A session in another precision has no scaler, or starts one afresh: it holds no state of the optimisation itself.
    if run.scaler is not None and state.get("scaler"):
        run.scaler.load_state_dict(dict(state["scaler"]))


Schedule = list[tuple[float, float]]
"""Of each parameter group the rate that the schedule scales, and the weight decay."""


def schedule(run: Run) -> Schedule:
    """What the run's own settings say, before a checkpoint's take their place."""
    return [(float(group["initial_lr"]), float(group["weight_decay"])) for group in run.optimizer.param_groups]


def reschedule(run: Run, planned: Schedule) -> None:
    """After `restore`, let the next step follow `planned` and the run's own curve at the step that was restored."""
    curve: Any = run.scheduler
    curve.base_lrs = [rate for rate, _ in planned]
    for group, (rate, decay), factor in zip(run.optimizer.param_groups, planned, curve.lr_lambdas, strict=True):
        group["initial_lr"], group["weight_decay"] = rate, decay
        group["lr"] = rate * factor(curve.last_epoch)
    curve._last_lr = [group["lr"] for group in run.optimizer.param_groups]  # noqa: SLF001  what its own step would set


def capture_rng() -> tuple[Arrays, dict[str, Any]]:
    """State of the Python, NumPy, torch CPU and every CUDA generator, as arrays and a JSON part."""
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state()
    arrays = {
        "rng.python": np.array(words, dtype=np.uint32),
        "rng.numpy": np.array(legacy[1], dtype=np.uint32),
        "rng.torch": _host(torch.get_rng_state()),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for device, value in enumerate(torch.cuda.get_rng_state_all()):
            arrays[f"rng.cuda.{device}"] = _host(value)
    return arrays, {"python": [version, gauss], "numpy": [int(legacy[2]), int(legacy[3]), float(legacy[4])]}


def restore_rng(arrays: Mapping[str, np.ndarray], rng: Mapping[str, Any]) -> None:
    """Set every generator back. Those of GPUs this machine lacks are passed over: no other device draws the same."""
    for name in ("rng.python", "rng.numpy", "rng.torch"):
        if name not in arrays:
            raise CheckpointError(f"the checkpoint lacks the tensor {name}")
    random.setstate((rng["python"][0], tuple(arrays["rng.python"].tolist()), rng["python"][1]))
    position, has_gauss, gauss = rng["numpy"]
    np.random.set_state(("MT19937", arrays["rng.numpy"], position, has_gauss, gauss))
    torch.set_rng_state(_tensor(arrays["rng.torch"]))
    if torch.cuda.is_available():
        for device in range(torch.cuda.device_count()):
            if f"rng.cuda.{device}" in arrays:
                torch.cuda.set_rng_state(_tensor(arrays[f"rng.cuda.{device}"]), device)


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, after which mode and random generators are as they were."""
    training, lenient = model.training, torch.is_deterministic_algorithms_warn_only_enabled()
    strict = torch.are_deterministic_algorithms_enabled()
    arrays, rng = capture_rng()
    model.eval()
    # What is looked at here is not trained on: writing an answer may use any kernel.
    torch.use_deterministic_algorithms(strict, warn_only=True)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=lenient)
        model.train(training)
        restore_rng(arrays, rng)


def seed_all(seed: int) -> None:
    """Seed the Python, NumPy, torch CPU and every CUDA generator."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _host(value: torch.Tensor) -> np.ndarray:
    return value.detach().to("cpu", copy=True).contiguous().numpy()


def _array(value: float) -> np.ndarray:
    return np.array(value, dtype=np.int64 if isinstance(value, int) else np.float64)


def _tensor(array: np.ndarray) -> torch.Tensor:
    # A copy, because arrays out of a checkpoint are read-only views into its buffer.
    return torch.from_numpy(np.array(array, order="C"))
