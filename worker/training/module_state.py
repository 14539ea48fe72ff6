"""State of a model outside its trainable parameters: buffers and plain attributes of its modules.

Some models change it as they compute. Dynamic rotary embeddings stretch their frequencies after a long batch and reset
them after a short one. An evaluation must not leave such a change behind, and a checkpoint has to contain it.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from worker.shared.checkpoint_file import CheckpointError

PREFIX = "rng.module."
"""Names of these tensors in a checkpoint begin with it.

Earlier versions restore a checkpoint whatever tensors it has under `rng.`. They continue without this state, as before.
"""
_FRAME = frozenset(vars(nn.Module()))
"""What every module has. Parameters, submodules, hooks and the mode are not state of this kind."""
_SIMPLE = (bool, int, float, str, type(None))
_ABSENT = object()
_DEPTH = 4
"""Levels of nested containers that are looked into."""
MAX_BYTES = 64 * 2**20
"""Maximum size of this state in a checkpoint. Larger state, such as tables for long texts, is not kept."""
_STORABLE = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8}
    | {torch.uint8, torch.bool}
)
_AS_BITS = {torch.bfloat16: torch.int16}
"""Number formats that NumPy lacks, and what they are stored as."""


@dataclass(frozen=True)
class _Value:
    """A value and its content: a copy of a tensor, the values in a container, or None for any other object."""

    live: Any
    content: Any = None
    version: int = -1


@dataclass(frozen=True)
class _Module:
    module: nn.Module
    path: str
    plain: dict[str, _Value]
    buffers: dict[str, _Value]
    not_persistent: set[str]
    changeable: list[_Value]
    """The values that can change in place."""
    attributes: int
    """How many there were, those of every module included."""

    def named(self) -> Iterator[tuple[str, _Value]]:
        yield from self.plain.items()
        yield from self.buffers.items()


class ModuleState:
    """The state at one moment. `before` is an earlier one of this model: what is the same since is not copied again."""

    def __init__(self, model: nn.Module, before: ModuleState | None = None) -> None:
        known = {} if before is None else {id(one.module): one for one in before._modules}  # noqa: SLF001
        self._modules = [_taken(path, module, known.get(id(module))) for path, module in model.named_modules()]

    def put_back(self) -> None:
        """Make the state of the modules what it was, in place."""
        for saved in self._modules:
            plain = vars(saved.module)
            for name in [name for name in plain if name not in _FRAME and name not in saved.plain]:
                del plain[name]
            _fill(plain, saved.plain)
            buffers = saved.module._buffers  # noqa: SLF001  register_buffer would reject a name that is taken
            for name in [name for name in buffers if name not in saved.buffers]:
                del buffers[name]
            _fill(buffers, saved.buffers)
            names = saved.module._non_persistent_buffers_set  # noqa: SLF001
            names.clear()
            names.update(saved.not_persistent)

    def get(self) -> dict[tuple[str, str], _Value]:
        """Each value by the path of its module and its name."""
        return {(saved.path, name): value for saved in self._modules for name, value in saved.named()}


@dataclass(frozen=True)
class Changes:
    """What training has changed. `lost` names the changes that a checkpoint cannot contain."""

    arrays: dict[str, np.ndarray]
    values: dict[str, dict[str, Any]]
    lost: list[str]

    @property
    def crc(self) -> int:
        """Checksum of the changes, to compare several processes."""
        crc = zlib.crc32(json.dumps([self.values, self.lost], sort_keys=True).encode())
        for _, array in sorted(self.arrays.items()):
            crc = zlib.crc32(array.tobytes(), crc)
        return crc


class Fresh:
    """The state of the model as loaded, and what it sets by itself at its first use."""

    def __init__(self, loaded: ModuleState, used: ModuleState) -> None:
        """`used` is the state after one pass. A model sets for example a mark there that it has been used."""
        before, after = loaded.get(), used.get()
        self._loaded = before
        self._by_itself = {
            key: value
            for key, value in after.items()
            if not _is_state(value.live) and not (key in before and _equal(value.live, before[key]))
        }

    def changes(self, model: nn.Module) -> Changes:
        """The difference between the model and its state as loaded."""
        found = Changes(arrays={}, values={}, lost=[])
        now = dict(_live(model))
        for key, (value, is_buffer) in now.items():
            if key in self._loaded and _equal(value, self._loaded[key]):
                continue
            if key in self._by_itself and not _is_state(value) and self._is_mark(key, value):
                continue
            _note(found, key, value, is_buffer=is_buffer)
        for path, name in self._loaded.keys() - now.keys():
            found.values.setdefault(path, {})[name] = {"absent": True}
        found.lost.sort()
        return found

    def _is_mark(self, key: tuple[str, str], value: Any) -> bool:
        return not isinstance(value, list | dict | set) or _equal(value, self._by_itself[key])


def restore(model: nn.Module, values: Mapping[str, Mapping[str, Any]], arrays: Mapping[str, np.ndarray]) -> None:
    """Apply the changes of a checkpoint. Raises `CheckpointError` if the model has no place for one of them."""
    modules = dict(model.named_modules())
    for path, names in values.items():
        for name, entry in names.items():
            module = modules.get(path)
            if module is None or not _has_place(module, name):
                raise CheckpointError(f"the checkpoint has state of {path}.{name}, which this model lacks")
            _apply(module, path, name, entry, arrays)


def _taken(path: str, module: nn.Module, before: _Module | None) -> _Module:
    if before is not None and _has_same_objects(module, before) and all(map(_is_unchanged, before.changeable)):
        return before
    return _copy_of(path, module)


def _copy_of(path: str, module: nn.Module) -> _Module:
    plain = {name: _copied(value) for name, value in vars(module).items() if name not in _FRAME}
    buffers = {name: _copied(value) for name, value in module._buffers.items()}  # noqa: SLF001
    return _Module(
        module,
        path,
        plain,
        buffers,
        set(module._non_persistent_buffers_set),  # noqa: SLF001
        [value for value in (*plain.values(), *buffers.values()) if value.content is not None],
        len(vars(module)),
    )


def _has_same_objects(module: nn.Module, saved: _Module) -> bool:
    plain, buffers = vars(module), module._buffers  # noqa: SLF001
    if (len(plain), len(buffers)) != (saved.attributes, len(saved.buffers)):
        return False
    if module._non_persistent_buffers_set != saved.not_persistent:  # noqa: SLF001
        return False
    return _are_there(saved.plain, plain) and _are_there(saved.buffers, buffers)


def _are_there(saved: Mapping[str, _Value], names: Mapping[str, Any]) -> bool:
    return all(names.get(name, _ABSENT) is value.live for name, value in saved.items())


def _is_unchanged(saved: _Value) -> bool:
    """Whether an object has surely the content that it had."""
    live, content = saved.live, saved.content
    if content is None:
        return True
    if isinstance(live, torch.Tensor):
        return saved.version >= 0 and _version(live) == saved.version
    if isinstance(content, set):
        return live == content
    if isinstance(content, dict):
        return list(live) == list(content) and _are_the_same(live.values(), content.values())
    return len(live) == len(content) and _are_the_same(live, content)


def _are_the_same(values: Iterable[Any], saved: Iterable[_Value]) -> bool:
    return all(value is item.live and _is_unchanged(item) for value, item in zip(values, saved, strict=True))


def _copied(value: Any, depth: int = 0) -> _Value:
    if isinstance(value, torch.Tensor):
        if isinstance(value, nn.Parameter):
            return _Value(value)
        return _Value(value, value.detach().clone(), _version(value))
    if depth < _DEPTH and isinstance(value, list):
        return _Value(value, [_copied(item, depth + 1) for item in value])
    if depth < _DEPTH and isinstance(value, dict):
        return _Value(value, {key: _copied(item, depth + 1) for key, item in value.items()})
    return _Value(value, set(value) if isinstance(value, set) else None)


def _version(tensor: torch.Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version  # noqa: SLF001  torch counts changes in place


def _fill(names: dict[str, Any], saved: Mapping[str, _Value]) -> None:
    for name, value in saved.items():
        names[name] = _reverted(value)


def _reverted(saved: _Value) -> Any:
    """The object itself with the content that it had."""
    live, content = saved.live, saved.content
    if isinstance(live, torch.Tensor):
        if content is not None and (saved.version < 0 or _version(live) != saved.version):
            with torch.no_grad():
                live.copy_(content)
    elif isinstance(content, list):
        live[:] = [_reverted(item) for item in content]
    elif isinstance(content, dict):
        items = {key: _reverted(item) for key, item in content.items()}
        live.clear()
        live.update(items)
    elif isinstance(content, set) and live != content:
        live.clear()
        live.update(content)
    return live


def _equal(value: Any, saved: _Value) -> bool:
    """Whether `value` is the saved value with the same content."""
    live, content = saved.live, saved.content
    if isinstance(content, torch.Tensor):
        return (
            isinstance(value, torch.Tensor)
            and (value.dtype, value.shape, value.device) == (content.dtype, content.shape, content.device)
            and torch.equal(value, content)
        )
    if isinstance(content, list):
        return isinstance(value, list) and len(value) == len(content) and all(map(_equal, value, content))
    if isinstance(content, dict):
        same_keys = isinstance(value, dict) and value.keys() == content.keys()
        return same_keys and all(_equal(value[key], content[key]) for key in content)
    if isinstance(content, set):
        return value == content
    return value is live or (type(value) is type(live) and _is_simple(value) and value == live)


def _is_simple(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_simple, value))
    return isinstance(value, (*_SIMPLE, torch.dtype, torch.device))


def _is_state(value: Any) -> bool:
    """Whether a value counts something, so that its first change must not be taken for a mark of use."""
    return isinstance(value, torch.Tensor) or (isinstance(value, int | float) and not isinstance(value, bool))


def _live(model: nn.Module) -> Iterator[tuple[tuple[str, str], tuple[Any, bool]]]:
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in _FRAME:
                yield (path, name), (value, False)
        for name, value in module._buffers.items():  # noqa: SLF001
            yield (path, name), (value, True)


def _note(found: Changes, key: tuple[str, str], value: Any, *, is_buffer: bool) -> None:
    path, name = key
    if _is_storable(value) and value.nbytes + sum(array.nbytes for array in found.arrays.values()) <= MAX_BYTES:
        bits = value.detach().view(_AS_BITS[value.dtype]) if value.dtype in _AS_BITS else value.detach()
        found.arrays[_array_name(path, name)] = bits.to("cpu", copy=True).contiguous().numpy()
        entry = {"tensor": str(value.dtype).removeprefix("torch."), "buffer": is_buffer}
    elif _is_plain(value):
        entry = {"value": value}
    elif callable(value):  # wrappers of methods, which libraries set
        return
    else:
        found.lost.append(f"{path}.{name}")
        return
    found.values.setdefault(path, {})[name] = entry


def _is_storable(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout is torch.strided and value.dtype in _STORABLE


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether JSON gives the value back as it was."""
    if isinstance(value, list) and depth < _DEPTH:
        return all(_is_plain(item, depth + 1) for item in value)
    if isinstance(value, dict) and depth < _DEPTH:
        return all(isinstance(key, str) and _is_plain(item, depth + 1) for key, item in value.items())
    return type(value) in _SIMPLE and not (isinstance(value, float) and not math.isfinite(value))


def _has_place(module: nn.Module, name: str) -> bool:
    if name in _FRAME or not name.isidentifier() or name.startswith("__"):
        return False
    if name in module._modules or name in module._parameters:  # noqa: SLF001
        return False
    there = vars(module).get(name, module._buffers.get(name))  # noqa: SLF001
    # A name that the class defines would hide a method.
    return not callable(there) and (there is not None or name in vars(module) or not hasattr(type(module), name))


def _apply(module: nn.Module, path: str, name: str, entry: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    plain, buffers = vars(module), module._buffers  # noqa: SLF001
    if "tensor" not in entry:
        plain.pop(name, None)
        buffers.pop(name, None)
        if not entry.get("absent"):
            plain[name] = entry["value"]
        return
    dtype = getattr(torch, str(entry["tensor"]), None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"the checkpoint's state of {path}.{name} has the unknown type {entry['tensor']}")
    if _array_name(path, name) not in arrays:
        raise CheckpointError(f"the checkpoint lacks the tensor {_array_name(path, name)}")
    value = torch.from_numpy(np.array(arrays[_array_name(path, name)], order="C"))
    value = (value.view(dtype) if dtype in _AS_BITS else value.to(dtype)).to(_device_of(module, name))
    if not entry.get("buffer"):
        plain[name] = value
    elif name in buffers:
        buffers[name] = value
    else:
        plain.pop(name, None)
        module.register_buffer(name, value, persistent=False)


def _device_of(module: nn.Module, name: str) -> torch.device:
    there = vars(module).get(name, module._buffers.get(name))  # noqa: SLF001
    if isinstance(there, torch.Tensor):
        return there.device
    tensors = (*module.buffers(), *module.parameters())
    return tensors[0].device if tensors else torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _array_name(path: str, name: str) -> str:
    return f"{PREFIX}{path}.{name}"
