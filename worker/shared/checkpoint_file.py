"""A checkpoint: one `.safetensors` file whose header carries the manifest. No torch, no pickle.

Layout: 8 bytes little-endian header size, a JSON header, then the tensors back to back. The header's `__metadata__`
holds `{"trainhop": manifest JSON}`. Equal tensors and an equal manifest give equal bytes; the file's id is its sha256.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from worker.shared.messages import PROTOCOL_VERSION, Manifest, Recipe

MAX_HEADER_BYTES = 100_000_000
"""The format's own cap; a larger header is no header."""
_CHUNK = 4 * 2**20
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items()}


class CheckpointError(Exception):
    """A checkpoint that must not be continued from; the message says why in one sentence."""


def write(path: Path, tensors: Mapping[str, np.ndarray], manifest: Manifest) -> tuple[str, int]:
    """Write the checkpoint to `path` so that it is there whole or not at all; returns `(sha256, size in bytes)`.

    Raises `OSError` (a full disk, say) after removing what was begun.
    """
    partial = path.with_name(path.name + ".tmp")
    digest, size = hashlib.sha256(), 0
    try:
        with partial.open("wb") as file:
            for piece in _pieces(tensors, manifest):
                file.write(piece)
                digest.update(piece)
                size += len(piece)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)
    return digest.hexdigest(), size


def read_manifest(source: Path | bytes) -> Manifest:
    """The manifest in the header of a file, or of the file's first bytes, without reading the tensors.

    Raises `CheckpointError` if this is no checkpoint, is cut off inside its header, or is of a newer protocol.
    """
    if isinstance(source, bytes):
        return _manifest(_header(source[:8], source[8 : 8 + MAX_HEADER_BYTES]))
    with source.open("rb") as file:
        prefix = file.read(8)
        return _manifest(_header(prefix, file.read(_header_size(prefix))))


def load(path: Path, expected_sha256: str | None = None) -> tuple[dict[str, np.ndarray], Manifest]:
    """Tensors by name (read-only, sharing one buffer) and the manifest, after checking the whole file.

    Raises `CheckpointError` if the file is cut off, altered, or not the one that `expected_sha256` names.
    """
    data = path.read_bytes()
    if expected_sha256 is not None and (found := hashlib.sha256(data).hexdigest()) != expected_sha256:
        raise CheckpointError(f"{path.name} has sha256 {found} but {expected_sha256} was promised; fetch it again")
    header = _header(data[:8], memoryview(data)[8 : 8 + _header_size(data[:8])])
    manifest = _manifest(header)
    begin = 8 + _header_size(data[:8])
    return _tensors(header, memoryview(data)[begin:]), manifest


def sha256_file(path: Path) -> str:
    """Lower-case hex sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def check_recipe(mine: Recipe, theirs: Recipe) -> None:
    """Refuse a checkpoint of another run. Raises `CheckpointError` with every differing field, both values side by side.

    What I do not know (`None`, on the server) is not compared; what I know and the checkpoint does not is a difference.
    """
    fields = type(mine).model_fields
    unknown = [
        (n, getattr(mine, n), None) for n in fields if getattr(theirs, n) is None and getattr(mine, n) is not None
    ]
    if wrong := [*mine.differences(theirs), *unknown]:
        pairs = "; ".join(f"{name}: {a!r} (job) != {b!r} (checkpoint)" for name, a, b in wrong)
        raise CheckpointError(f"the checkpoint belongs to another run: {pairs}")


def _pieces(tensors: Mapping[str, np.ndarray], manifest: Manifest) -> Iterator[bytes | memoryview]:
    # Larger items first keeps every tensor aligned without gaps, which the format forbids.
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"trainhop": manifest.model_dump_json()}}
    end = 0
    for name in order:
        array = tensors[name]
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"a checkpoint header of {len(text)} bytes exceeds {MAX_HEADER_BYTES}")
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        raw = np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8)
        for at in range(0, raw.nbytes, _CHUNK):
            yield raw[at : at + _CHUNK].data


def _sync_directory(directory: Path) -> None:
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:  # Windows and some network folders cannot open a directory; the rename is then as safe as it gets
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _header_size(prefix: bytes) -> int:
    if len(prefix) < 8:
        raise CheckpointError("the checkpoint is cut off before its header; fetch it again")
    size = int.from_bytes(prefix, "little")
    if not 2 <= size <= MAX_HEADER_BYTES:
        raise CheckpointError("this is not a checkpoint: the first 8 bytes are no plausible header size")
    return size


def _header(prefix: bytes, text: bytes | memoryview) -> dict[str, Any]:
    size = _header_size(prefix)
    if len(text) < size:
        raise CheckpointError(
            f"the checkpoint is cut off inside its header ({len(text)} of {size} bytes); fetch it again"
        )
    try:
        header = json.loads(bytes(text[:size]))
    except (ValueError, RecursionError):
        raise CheckpointError("this is not a checkpoint, or a corrupt one: its header is not JSON") from None
    if not isinstance(header, dict):
        raise CheckpointError("this is not a checkpoint: its header is not a JSON object")
    return header


def _manifest(header: dict[str, Any]) -> Manifest:
    metadata = header.get("__metadata__")
    text = metadata.get("trainhop") if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise CheckpointError("this safetensors file is not a Trainhop checkpoint: its header holds no manifest")
    try:
        found = json.loads(text)
        protocol = found.get("protocol") if isinstance(found, dict) else None
        if isinstance(protocol, int) and protocol > PROTOCOL_VERSION:
            raise CheckpointError(
                f"the checkpoint speaks protocol {protocol}, this program {PROTOCOL_VERSION}; update Trainhop here"
            )
        return Manifest.model_validate(found)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"]) or "manifest"
        raise CheckpointError(f"the checkpoint's manifest is not valid at {where}: {fault['msg']}") from None
    except (ValueError, RecursionError):
        raise CheckpointError("the checkpoint is corrupt: its manifest is not JSON") from None


def _tensors(header: dict[str, Any], body: memoryview) -> dict[str, np.ndarray]:
    entries = [(name, _entry(name, value)) for name, value in header.items() if name != "__metadata__"]
    tensors: dict[str, np.ndarray] = {}
    expected = 0
    for name, (dtype, shape, begin, end) in sorted(entries, key=lambda entry: entry[1][2:]):
        if begin != expected or end - begin != dtype.itemsize * int(np.prod(shape, dtype=np.uint64)):
            raise CheckpointError(f"the checkpoint is corrupt: tensor {name} does not lie where its header says")
        if end > len(body):
            raise CheckpointError(f"the checkpoint is cut off inside tensor {name}; fetch it again")
        array = np.frombuffer(body[begin:end], dtype=dtype).reshape(shape)
        tensors[name], expected = array, end
    if expected != len(body):
        raise CheckpointError(f"the checkpoint is corrupt: {len(body) - expected} bytes follow its last tensor")
    return tensors


def _entry(name: str, value: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    try:
        begin, end = value["data_offsets"]
        shape = tuple(value["shape"])
        if all(type(n) is int and n >= 0 for n in (begin, end, *shape)):
            return np.dtype(_DTYPES[value["dtype"]]), shape, begin, end
    except (KeyError, TypeError, ValueError):
        pass
    raise CheckpointError(f"the checkpoint is corrupt: the header entry of tensor {name} cannot be read")
