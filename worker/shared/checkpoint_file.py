"""A checkpoint: one `.safetensors` file whose header contains the manifest. No torch, no pickle.

Layout: 8 bytes little-endian header size, a JSON header, then the tensors without gaps. The header's `__metadata__` is
`{"trainhop": manifest JSON}`. Equal tensors and an equal manifest give equal bytes. The file's id is its sha256.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from worker.shared import checkpoint_header
from worker.shared.checkpoint_header import (
    DTYPES,
    MANIFEST,
    MAX_HEADER_BYTES,
    METADATA,
    CheckpointError,
    Header,
    OtherRunError,
    header_size,
    read_header,
)
from worker.shared.files import atomic_file
from worker.shared.manifest import Manifest, Recipe

__all__ = [
    "MAX_HEADER_BYTES",
    "CheckpointError",
    "OtherRunError",
    "check_recipe",
    "load",
    "read_manifest",
    "sha256_file",
    "write",
]
_CHUNK = 4 * 2**20
_NAMES = {np.dtype(code): name for name, code in DTYPES.items()}
ROWS_DIFFER = (
    "the rows of this job are rendered or tokenised differently here than in its earlier sessions, although data and "
    "tokenizer are the same, so another version of Trainhop or of its packages is at work; use the version of the "
    "earlier sessions, or clone the job from its start"
)


def write(path: Path, tensors: Mapping[str, np.ndarray], manifest: Manifest) -> tuple[str, int]:
    """Write the checkpoint to `path` completely or not at all. Returns `(sha256, size in bytes)`.

    Raises `OSError`, for example on a full disk, after it removed the partial file.
    """
    digest, size = hashlib.sha256(), 0
    with atomic_file(path) as file:
        for piece in _pieces(tensors, manifest):
            file.write(piece)
            digest.update(piece)
            size += len(piece)
    return digest.hexdigest(), size


def read_manifest(source: Path | bytes) -> Manifest:
    """The manifest in the header of a file, or in the file's first bytes. Does not read the tensors.

    Raises `CheckpointError` if this is not a checkpoint, its header is incomplete, or its protocol is newer.
    """
    if isinstance(source, bytes):
        return checkpoint_header.read_manifest(source)
    with source.open("rb") as file:
        prefix = file.read(8)
        return checkpoint_header.read_manifest(prefix + file.read(header_size(prefix)))


def load(path: Path, expected_sha256: str | None = None) -> tuple[dict[str, np.ndarray], Manifest]:
    """Tensors by name (read-only, in one shared buffer) and the manifest, after a check of the whole file.

    Raises `CheckpointError` if the file is incomplete, altered, or does not match `expected_sha256`.
    """
    data = path.read_bytes()
    if expected_sha256 is not None and (found := hashlib.sha256(data).hexdigest()) != expected_sha256:
        raise CheckpointError(f"{path.name} has sha256 {found}, expected {expected_sha256}; download it again")
    header = read_header(memoryview(data), len(data))
    return _tensors(header, memoryview(data)[header.size :]), header.manifest


def sha256_file(path: Path) -> str:
    """Lower-case hex sha256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def check_recipe(mine: Recipe, theirs: Recipe) -> None:
    """Raise `OtherRunError` if the recipes differ. The message lists each differing field with both values.

    A field that is `None` in `mine` (on the server) is not compared. A field that is `None` only in the checkpoint
    counts as a difference, except for the rows, which older checkpoints do not name.
    """
    fields = [name for name in type(mine).model_fields if name != "rows_sha256"]
    unknown = [
        (n, getattr(mine, n), None) for n in fields if getattr(theirs, n) is None and getattr(mine, n) is not None
    ]
    wrong = [*mine.differences(theirs), *unknown]
    pairs = "; ".join(f"{name}: {a!r} (job) != {b!r} (checkpoint)" for name, a, b in wrong)
    if [name for name, _, _ in wrong] == ["rows_sha256"]:
        raise OtherRunError(f"{ROWS_DIFFER} ({pairs})")
    if wrong:
        raise OtherRunError(f"the checkpoint belongs to another run: {pairs}")


def _pieces(tensors: Mapping[str, np.ndarray], manifest: Manifest) -> Iterator[bytes | memoryview]:
    # Larger items first keeps every tensor aligned without gaps, which the format forbids.
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, Any] = {METADATA: {MANIFEST: manifest.model_dump_json()}}
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


def _tensors(header: Header, body: memoryview) -> dict[str, np.ndarray]:
    return {
        name: np.frombuffer(body[entry.begin : entry.end], dtype=DTYPES[entry.dtype]).reshape(entry.shape)
        for name, entry in header.tensors.items()
    }
