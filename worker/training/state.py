"""Saves and restores the full state of a run at the end of a step, as named NumPy arrays and JSON.

Names: `adapter.<parameter>`, `optimizer.<parameter>.<key>` (in the optimiser's own format, including 8-bit codes),
`rng.python`, `rng.numpy`, `rng.torch`, `rng.cuda.<device>`, and `rng.module.<name>` for state of the model's modules
that training has changed. Everything that is not an array is in the manifest's `state`.
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

from worker.shared import checkpoint_header
from worker.shared.checkpoint_header import BEST, CheckpointError
from worker.training import module_state
from worker.training.determinism import set_deterministic_kernels
from worker.training.hostcopy import HostCopy, Ready
from worker.training.interface import UnsoundStateError
from worker.training.module_state import Changes, ModuleState

Arrays = dict[str, np.ndarray]
_ODD_FACTOR = 2_654_435_761
"""Gives each place in a tensor a weight of its own, so that exchanged values are noticed."""
_LESS = "lower learning_rate or check the dataset"


@dataclass(frozen=True)
class Run:
    """The live objects with the state to save. `optimizer` is the bare one, without any wrapper."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler | None = None


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by name, in the model's own order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def parameters_sha256(model: nn.Module) -> str:
    """Hash over the names and shapes of the trainable parameters."""
    return checkpoint_header.parameters_sha256([(n, list(p.shape)) for n, p in trainable(model).items()])


def has_learnt(model: nn.Module) -> bool:
    """Whether any of the adapter's matrices that begin with zeros has another value."""
    begun = [value.data for name, value in trainable(model).items() if "lora_B" in name or "lora_embedding_A" in name]
    return not begun or bool(torch.stack([tensor.count_nonzero() for tensor in begun]).any())


def gradients_sha256(model: nn.Module) -> str:
    """Hash of the gradients of all trainable parameters."""
    return _bits_sha256([parameter.grad for parameter in trainable(model).values()])


def values_sha256(model: nn.Module) -> str:
    """Hash of the values of all trainable parameters."""
    return _bits_sha256([parameter.data for parameter in trainable(model).values()])


def _bits_sha256(tensors: list[torch.Tensor | None]) -> str:
    """Hash of fp32 tensors. Only one number for each of them leaves the device.

    Integer sums have the same result in any order, so that the hash depends on the values alone.
    """
    present = [tensor for tensor in tensors if tensor is not None]
    sums = torch.stack([_bits_sum(tensor) for tensor in present]).cpu().numpy().tobytes() if present else b""
    return hashlib.sha256(bytes(tensor is not None for tensor in tensors) + sums).hexdigest()


def _bits_sum(tensor: torch.Tensor) -> torch.Tensor:
    bits = tensor.detach().float().flatten().view(torch.int32).to(torch.int64)
    return (bits * (torch.arange(len(bits), device=bits.device) * _ODD_FACTOR + 1)).sum()


def snapshot(run: Run, copier: HostCopy, changed: Changes) -> tuple[Arrays, dict[str, Any], Ready]:
    """Host copies of all tensors, the JSON part, and a function that waits until the copies are filled.

    `changed` is the state of the model's modules that training has changed.

    The result does not refer to live memory, so training may continue at once.
    """
    parameters = trainable(run.model)
    tensors = {f"adapter.{name}": value.data for name, value in parameters.items()}
    scalars: Arrays = {}
    idle = []
    for name, parameter in parameters.items():
        slots = run.optimizer.state.get(parameter) or {}
        if not slots:
            idle.append(name)
        for key, value in slots.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{name}.{key}"] = value
            else:
                scalars[f"optimizer.{name}.{key}"] = _array(value)
    if bad := _first_not_finite(tensors):
        raise UnsoundStateError(f"{bad} has NaN or infinite values, so it was not saved; {_LESS}")
    arrays, ready = copier.take(tensors)
    rng_arrays, rng = capture_rng()
    state = {
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in run.optimizer.param_groups],
        "without_state": idle,
        "scheduler": dict(run.scheduler.state_dict()),
        "scaler": run.scaler.state_dict() if run.scaler is not None else None,
        "rng": rng,
        "modules": changed.values,
        "not_kept": changed.lost,
    }
    # A round trip through JSON here, and not at the write, so that an unsupported value raises in the training thread.
    return arrays | scalars | rng_arrays | changed.arrays, json.loads(json.dumps(state)), ready


def _first_not_finite(tensors: Mapping[str, torch.Tensor]) -> str:
    """The name of the first tensor with NaN or infinite values, or nothing. Waits once for each device."""
    floats = {name: tensor.detach() for name, tensor in tensors.items() if tensor.is_floating_point()}
    for device in {tensor.device for tensor in floats.values()}:
        here = [name for name, tensor in floats.items() if tensor.device == device]
        sound = torch.stack([torch.isfinite(floats[name]).all() for name in here]).tolist()
        if not all(sound):
            return here[sound.index(False)]
    return ""


def restore(
    run: Run, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any], planned: Schedule | None = None
) -> None:
    """Load a snapshot into the run. Raises `CheckpointError` if names, shapes and types do not match exactly.

    With `planned`, the settings of the optimiser's groups are the run's own.
    """
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
    _check_names(targets.keys() | scalars.keys(), {n: a for n, a in arrays.items() if not n.startswith(BEST)})
    module_state.restore(run.model, state.get("modules") or {}, arrays)
    for name, target in targets.items():
        _copy(name, target, arrays[name])
    for name, (slots, key) in scalars.items():
        slots[key] = type(slots[key])(arrays[name].item())
    try:
        _restore_schedule(run, state, planned)
        restore_rng(arrays, state["rng"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint's state cannot be read: {type(error).__name__}: {error}") from error


def restore_adapter(
    model: nn.Module, arrays: Mapping[str, np.ndarray], modules: Mapping[str, Mapping[str, Any]]
) -> None:
    """Load the adapter of a snapshot, and its state of the model's `modules`, without the optimiser.

    Raises `CheckpointError` as `restore` does.
    """
    targets = {f"adapter.{name}": parameter.data for name, parameter in trainable(model).items()}
    _check_names(set(targets), {name: array for name, array in arrays.items() if name.startswith("adapter.")})
    module_state.restore(model, modules, arrays)
    for name, target in targets.items():
        _copy(name, target, arrays[name])


def _materialise(optimizer: torch.optim.Optimizer) -> None:
    """Make the optimiser allocate all its state, by a step that changes no parameter.

    Only the optimiser knows its tensors, their types, and their kind of memory (for example paged).
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
    present = {name for name in arrays if not name.startswith("rng.")}
    if missing := sorted(expected - present):
        raise CheckpointError(f"the checkpoint lacks {len(missing)} tensors, the first being {missing[0]}")
    if surplus := sorted(present - expected):
        raise CheckpointError(f"the checkpoint has {len(surplus)} tensors too many, the first being {surplus[0]}")


def _copy(name: str, target: torch.Tensor, array: np.ndarray) -> None:
    source = _tensor(array)
    if source.dtype != target.dtype or source.shape != target.shape:
        raise CheckpointError(
            f"the checkpoint's tensor {name} is {source.dtype} {tuple(source.shape)}, "
            f"the run needs {target.dtype} {tuple(target.shape)}"
        )
    if _first_not_finite({name: source}):
        raise CheckpointError(f"the checkpoint's tensor {name} has NaN or infinite values")
    with torch.no_grad():
        target.copy_(source)


def _restore_schedule(run: Run, state: Mapping[str, Any], planned: Schedule | None) -> None:
    if planned is None:
        _restore_groups(run, state)
    run.scheduler.load_state_dict(dict(state["scheduler"]))
    if planned is not None:
        _reschedule(run, planned)
    # A session in another precision has no scaler or a new one. The scaler is not part of the optimisation's state.
    if run.scaler is not None and state.get("scaler"):
        run.scaler.load_state_dict(dict(state["scaler"]))


def _restore_groups(run: Run, state: Mapping[str, Any]) -> None:
    groups = run.optimizer.param_groups
    if len(groups) != len(state["groups"]):
        raise CheckpointError(f"the checkpoint has {len(state['groups'])} parameter groups, the run {len(groups)}")
    for group, saved in zip(groups, state["groups"], strict=True):
        if saved.keys() != group.keys() - {"params"}:
            names = sorted(saved.keys() ^ (group.keys() - {"params"}))
            raise CheckpointError(f"the checkpoint's optimiser settings differ in {', '.join(names)}")
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()})


Schedule = list[tuple[float, float]]
"""For each parameter group its base learning rate and its weight decay."""


def schedule(run: Run) -> Schedule:
    """The schedule of the run's own settings. Call it before `restore`, which replaces them."""
    return [(float(group["initial_lr"]), float(group["weight_decay"])) for group in run.optimizer.param_groups]


def _reschedule(run: Run, planned: Schedule) -> None:
    """Apply `planned` and the run's own learning rate curve from the restored step on."""
    curve: Any = run.scheduler
    curve.base_lrs = [rate for rate, _ in planned]
    for group, (rate, decay), factor in zip(run.optimizer.param_groups, planned, curve.lr_lambdas, strict=True):
        group["initial_lr"], group["weight_decay"] = rate, decay
        group["lr"] = rate * factor(curve.last_epoch)
    curve._last_lr = [group["lr"] for group in run.optimizer.param_groups]  # noqa: SLF001  what its own step would set


def capture_rng() -> tuple[Arrays, dict[str, Any]]:
    """State of the Python, NumPy, torch CPU and every CUDA generator, as arrays and a JSON part."""
    version, python_state, gauss = random.getstate()
    legacy: Any = np.random.get_state()
    arrays = {
        "rng.python": np.array(python_state, dtype=np.uint32),
        "rng.numpy": np.array(legacy[1], dtype=np.uint32),
        "rng.torch": _host(torch.get_rng_state()),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for device, value in enumerate(torch.cuda.get_rng_state_all()):
            arrays[f"rng.cuda.{device}"] = _host(value)
    return arrays, {"python": [version, gauss], "numpy": [int(legacy[2]), int(legacy[3]), float(legacy[4])]}


def restore_rng(arrays: Mapping[str, np.ndarray], rng: Mapping[str, Any]) -> None:
    """Restore every generator. States of GPUs that this machine does not have are ignored."""
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
def restored_afterwards(model: nn.Module) -> Iterator[None]:
    """Afterwards restores the model's mode, gradients and module state, and the random generators."""
    training, lenient = model.training, torch.is_deterministic_algorithms_warn_only_enabled()
    strict = torch.are_deterministic_algorithms_enabled()
    gradients = [(parameter, parameter.grad) for parameter in trainable(model).values()]
    kept, (arrays, rng) = ModuleState(model), capture_rng()
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        set_deterministic_kernels(strict, warn_only=lenient)
        model.train(training)
        kept.put_back()
        restore_rng(arrays, rng)


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients. See `restored_afterwards`."""
    with restored_afterwards(model), torch.no_grad():
        model.eval()
        # Evaluation does not affect training, so generation may use any kernel.
        set_deterministic_kernels(torch.are_deterministic_algorithms_enabled(), warn_only=True)
        yield


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
    # A copy, because arrays of a checkpoint are read-only views into its buffer.
    return torch.from_numpy(np.array(array, order="C"))
