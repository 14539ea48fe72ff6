"""Reads and writes folders of `.safetensors` files with little memory: one block of rows at a time, without mapping.

Mapped pages count as memory of the process, and a model's files are larger than the memory that an export may use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, Protocol

import torch

from worker.export.errors import ExportError
from worker.export.json_files import read_object
from worker.shared.files import flush_to_disk
from worker.shared.model_support import present_weights

BLOCK = 2**22
"""Elements of a block at most, unless one row has more. 16 MiB in fp32."""
_REMEDY = "download the model again"
MAX_HEADER_BYTES = 100_000_000
SHARD_BYTES = 4_000_000_000
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Weights(Protocol):
    """Tensors of a model under the names of transformers."""

    def names(self) -> Sequence[str]:
        """The names of all tensors, in the order of the files."""
        ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """The tensor in fp32, as consecutive blocks of rows. Together they have its shape."""
        ...


def whole(weights: Weights, name: str) -> torch.Tensor:
    """One tensor in fp32."""
    found = list(weights.blocks(name))
    return found[0] if len(found) == 1 else torch.cat(found)


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int


class TensorFolder:
    """The weights of a model's folder, as one file or as shards. See `Weights`."""

    def __init__(self, folder: Path) -> None:
        """Raises `ExportError` if weights are missing, cut off, or not stored as floating point numbers."""
        self._entries: dict[str, _Entry] = {}
        files = present_weights(folder)
        if not files:
            raise ExportError(f"{folder} has no .safetensors weights; name the folder of a model")
        for path in files:
            self._entries |= _entries(path)
        for name, file in _promised(folder).items():
            if name not in self._entries:
                raise ExportError(f"{folder} lacks {name}, which should be in {file}; download the model again")

    def names(self) -> Sequence[str]:
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """The type in which the tensor is stored."""
        return self._entries[name].dtype

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        entry = self._entries[name]
        for start, stop in row_blocks(entry.shape):
            yield self.rows(name, start, stop).float()

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows of a tensor as stored."""
        entry = self._entries[name]
        width = prod(entry.shape[1:])
        data = bytearray((stop - start) * width * entry.dtype.itemsize)
        with entry.path.open("rb", buffering=0) as file:
            file.seek(entry.offset + start * width * entry.dtype.itemsize)
            _fill(file, data, entry.path)
        shape = (stop - start, *entry.shape[1:]) if entry.shape else ()
        return torch.frombuffer(data, dtype=entry.dtype).reshape(shape)


class WithRows(TensorFolder):
    """A model's folder in which some rows of its tables have other values, and tables have further rows."""

    def __init__(self, folder: Path, rows: Mapping[str, tuple[Sequence[int], torch.Tensor]]) -> None:
        """`rows` by the name of the module. Raises `ExportError`, also where a row would have no values."""
        super().__init__(folder)
        self._rows = {f"{module}.weight": found for module, found in rows.items()}
        for name, (numbers, _) in self._rows.items():
            stored = super().shape(name)[0] if name in self._entries else 0
            if not set(range(stored, max(numbers, default=0) + 1)) <= set(numbers):
                raise ExportError(f"the adapter has rows for new tokens of {name}, and not for all of them")

    def shape(self, name: str) -> tuple[int, ...]:
        stored = super().shape(name)
        if name not in self._rows:
            return stored
        return (max(stored[0], max(self._rows[name][0], default=0) + 1), *stored[1:])

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        if name not in self._rows:
            yield from super().blocks(name)
            return
        numbers, values = self._rows[name]
        stored, shape = super().shape(name)[0], self.shape(name)
        for start, stop in row_blocks(shape):
            block = torch.zeros(stop - start, *shape[1:])
            if start < stored:
                block[: min(stop, stored) - start] = self.rows(name, start, min(stop, stored)).float()
            for place, number in enumerate(numbers):
                if start <= number < stop:
                    block[number - start] = values[place]
            yield block


def read_all(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of one small file, as stored. Raises `ExportError`."""
    if not path.is_file():
        raise ExportError(f"{path.parent} has no {path.name}; name the folder of an adapter")
    folder = TensorFolder.__new__(TensorFolder)
    folder._entries = _entries(path)  # noqa: SLF001  a folder of one file
    return {name: folder.rows(name, 0, (folder.shape(name) or (1,))[0]) for name in folder.names()}


def row_blocks(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last row (exclusive) of each block of a tensor."""
    rows = shape[0] if shape else 1
    step = max(1, BLOCK // max(1, prod(shape[1:])))
    for start in range(0, max(rows, 1), step):
        yield start, min(start + step, rows)


def write_shards(
    folder: Path,
    weights: Weights,
    dtype: torch.dtype,
    *,
    encode: Callable[[str, torch.Tensor], torch.Tensor],
    shard_bytes: int = SHARD_BYTES,
) -> list[Path]:
    """Write all tensors as `dtype` in files of at most `shard_bytes` (unless one tensor is larger), with their index.

    `encode(name, block)` converts a block of fp32. Raises `OSError`, for example on a full disk.
    """
    shards = _shards(weights, dtype.itemsize, shard_bytes)
    count = len(shards)
    names = [
        "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
        for number in range(1, count + 1)
    ]
    total = 0
    for file_name, tensors in zip(names, shards, strict=True):
        with (folder / file_name).open("wb") as file:
            total += _write_shard(file, weights, tensors, dtype, encode)
            flush_to_disk(file)
    if count > 1:
        index = {name: file for file, tensors in zip(names, shards, strict=True) for name in tensors}
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
        (folder / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")
    return [folder / name for name in names]


def _write_shard(
    file: IO[bytes],
    weights: Weights,
    names: Sequence[str],
    dtype: torch.dtype,
    encode: Callable[[str, torch.Tensor], torch.Tensor],
) -> int:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        begin, end = end, end + prod(weights.shape(name)) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(weights.shape(name)), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        for block in weights.blocks(name):
            file.write(raw(encode(name, block)))
    return end


def raw(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _shards(weights: Weights, itemsize: int, limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for name in weights.names():
        size = prod(weights.shape(name)) * itemsize
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _entries(path: Path) -> dict[str, _Entry]:
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > MAX_HEADER_BYTES:
                raise ValueError
            header: Mapping[str, Any] = json.loads(file.read(size))
        length = path.stat().st_size - 8 - size
        return {
            name: _entry(path, name, entry, 8 + size, length)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except OSError as error:
        raise ExportError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ExportError(f"{path} is not in safetensors format; download it again") from error


def _entry(path: Path, name: str, entry: Mapping[str, Any], base: int, length: int) -> _Entry:
    begin, end = map(int, entry["data_offsets"])
    shape = tuple(map(int, entry["shape"]))
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        raise ExportError(
            f"{name} in {path.name} is stored as {entry['dtype']}; use the original model, which is not quantised"
        )
    if min(shape, default=0) < 0 or begin < 0 or end - begin != prod(shape) * dtype.itemsize:
        raise ValueError
    if end > length:
        raise ExportError(f"{path} is cut off; download it again")
    return _Entry(path, dtype, shape, base + begin)


def _promised(folder: Path) -> Mapping[str, str]:
    """What the index says, if the folder is read by it."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return {}
    found = read_object(index, _REMEDY).get("weight_map")
    if not isinstance(found, dict):
        raise ExportError(f"{index} has no weight_map; {_REMEDY}")
    return found


def _fill(file: Any, data: bytearray, path: Path) -> None:
    view = memoryview(data)
    while view:
        count = file.readinto(view)
        if not count:
            raise ExportError(f"{path} is cut off; download it again")
        view = view[count:]
