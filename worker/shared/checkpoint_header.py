"""The header of a checkpoint: what it says is checked against the size of the file before anything is believed.

A server reads it from files that a machine has uploaded. So it is read entry by entry, each with a maximum.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from worker.shared.manifest import Manifest
from worker.shared.wire import PROTOCOL_VERSION

MAX_HEADER_BYTES = 32 * 2**20
"""A larger header is invalid. That of a model with 128 experts in each layer is smaller."""
MAX_TENSORS = 200_000
MAX_MANIFEST = 4 * 2**20
"""Characters of the manifest's JSON."""
_MAX_ENTRY, _MAX_DIMENSIONS, _MAX_LENGTH = 4_096, 16, 2**40
METADATA, MANIFEST = "__metadata__", "trainhop"
ADAPTER, OPTIMIZER, RNG = "adapter.", "optimizer.", "rng."
BEST = "best."
"""The adapter of the best evaluation so far, in a checkpoint of a job that ends with it."""
ANSWERS = "evaluation.answers"
"""The bytes of the answers so far, in a checkpoint of an evaluation: U8, one dimension."""
DTYPES = {
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
_BLANKS = re.compile(r"[ \t\r\n]*")
_NO_JSON = "this is not a checkpoint, or a corrupt one: its header is not JSON, or not a JSON object"


class CheckpointError(Exception):
    """A checkpoint that cannot be resumed. The message gives the reason in one sentence."""


class OtherRunError(CheckpointError):
    """A sound checkpoint of a run with other settings, another base model or other data."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor: its type and shape, and its bytes counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """The manifest, and every tensor by name in the order of the file. `size` is the number of bytes before them."""

    manifest: Manifest
    tensors: dict[str, Entry]
    size: int


def header_size(prefix: bytes) -> int:
    """Bytes of the JSON header, from a file's first 8 bytes. Raises `CheckpointError`."""
    if len(prefix) < 8:
        raise CheckpointError("the checkpoint is cut off before its header; download it again")
    size = int.from_bytes(prefix[:8], "little")
    if not 2 <= size <= MAX_HEADER_BYTES:
        raise CheckpointError("this is not a checkpoint: its first 8 bytes are not a valid header size")
    return size


def read_header(front: bytes | memoryview, file_bytes: int) -> Header:
    """The header in a file's first bytes. Its tensors fill the rest of a file of `file_bytes` without gap or overlap.

    Raises `CheckpointError`.
    """
    entries = _entries(front)
    manifest = _manifest(entries.pop(METADATA, None))
    size = 8 + header_size(bytes(front[:8]))
    tensors = {name: _entry(name, value) for name, value in entries.items()}
    return Header(manifest=manifest, tensors=_in_order(tensors, file_bytes - size), size=size)


def read_manifest(front: bytes | memoryview) -> Manifest:
    """The manifest in a file's first bytes. Raises `CheckpointError`."""
    return _manifest(_entries(front).get(METADATA))


def check_parameters(header: Header, *, of_evaluation: bool = False) -> None:
    """Raise `CheckpointError` unless the adapter is the one that the recipe names, with its optimiser's state.

    A recipe without the hash of the parameters is not compared. A checkpoint of an evaluation also has answers.
    """
    recipe = header.manifest.recipe
    if recipe.parameters_sha256 is None:
        return
    adapter = {n.removeprefix(ADAPTER): e for n, e in header.tensors.items() if n.startswith(ADAPTER)}
    if parameters_sha256([(name, entry.shape) for name, entry in adapter.items()]) != recipe.parameters_sha256:
        raise CheckpointError("the checkpoint is corrupt: its tensors are not the parameters that its manifest names")
    for name, entry in adapter.items():
        if recipe.trainable_dtype is not None and np.dtype(DTYPES[entry.dtype]).name != recipe.trainable_dtype:
            raise CheckpointError(f"the checkpoint is corrupt: {name} is {entry.dtype}, not {recipe.trainable_dtype}")
    _check_others(header, adapter, {ANSWERS} if of_evaluation else set())


def _check_others(header: Header, adapter: dict[str, Entry], also: set[str]) -> None:
    with_state: set[str] = set()
    for name in header.tensors.keys() - also:
        parameter = name.removeprefix(OPTIMIZER).rpartition(".")[0]
        if name.startswith(OPTIMIZER) and parameter in adapter:
            with_state.add(parameter)
        elif name.startswith(BEST) and header.manifest.recipe.load_best_model_at_end:
            _check_best(name, header.tensors[name], adapter.get(name.removeprefix(BEST)))
        elif not name.startswith((ADAPTER, RNG)):
            raise CheckpointError(f"the checkpoint is corrupt: {name} belongs to no parameter of the run")
    without = header.manifest.state.get("without_state")
    idle = set(map(str, without)) if isinstance(without, list) else set[str]()
    if wrong := sorted((with_state & idle) | (adapter.keys() - with_state - idle)):
        raise CheckpointError(
            f"the checkpoint is corrupt: the optimiser's state of {wrong[0]} does not match the manifest"
        )


def _check_best(name: str, entry: Entry, now: Entry | None) -> None:
    if now is None or (entry.dtype, entry.shape) != (now.dtype, now.shape):
        found = _words((now.dtype, now.shape) if now else None)
        raise CheckpointError(f"the checkpoint is corrupt: {name} is {entry.dtype} {list(entry.shape)}, not {found}")


def check_continues(header: Header, parent: Header) -> None:
    """Raise `CheckpointError` unless names, types and shapes are those of the checkpoint before.

    Random generators differ between machines. A parameter may get its optimiser's state later than others, and there
    is no best adapter before the first evaluation.
    """
    found, expected = _layout(header), _layout(parent)
    for name, entry in expected.items():
        if found.get(name) != entry:
            raise CheckpointError(
                f"the checkpoint's tensor {name} is {_words(found.get(name))}, in the one before it is {_words(entry)}"
            )
    late = parent.manifest.state.get("without_state") or ()
    for name in found.keys() - expected.keys():
        is_first_best = name.startswith(BEST) and not any(each.startswith(BEST) for each in expected)
        if not is_first_best and not (
            name.startswith(OPTIMIZER) and name.removeprefix(OPTIMIZER).rpartition(".")[0] in late
        ):
            raise CheckpointError(f"the checkpoint has a tensor {name}, the one before it has none")


def check_answers(header: Header, parent: Header | None) -> None:
    """Raise `CheckpointError` unless this is a checkpoint of an evaluation that keeps its parent's adapter and answers.

    The parent is the evaluated checkpoint, or one of the same evaluation. It may have been deleted.
    """
    answers = header.tensors.get(ANSWERS)
    if answers is None or answers.dtype != "U8" or len(answers.shape) != 1:
        found = _words((answers.dtype, answers.shape) if answers else None)
        raise CheckpointError(f"the checkpoint's tensor {ANSWERS} is {found}, but should be a row of bytes")
    if parent is None:
        return
    if _adapter_layout(header) != _adapter_layout(parent):
        raise CheckpointError("the evaluation's checkpoint has another adapter than the one before it")
    before = parent.tensors.get(ANSWERS)
    if before is not None and answers.shape < before.shape:
        sizes = f"{answers.shape[0]} bytes of answers, the one before {before.shape[0]}"
        raise CheckpointError(f"the checkpoint has {sizes}")


def _adapter_layout(header: Header) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (e.dtype, e.shape) for name, e in header.tensors.items() if name.startswith(ADAPTER)}


def parameters_sha256(shapes: Sequence[tuple[str, Sequence[int]]]) -> str:
    """Hash over the names and shapes of the trainable parameters."""
    return hashlib.sha256(json.dumps(sorted((name, list(shape)) for name, shape in shapes)).encode()).hexdigest()


def _layout(header: Header) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (e.dtype, e.shape) for name, e in header.tensors.items() if not name.startswith(RNG)}


def _words(entry: tuple[str, tuple[int, ...]] | None) -> str:
    return f"{entry[0]} {list(entry[1])}" if entry else "missing"


def _entries(front: bytes | memoryview) -> dict[str, Any]:
    size = header_size(bytes(front[:8]))
    raw = bytes(front[8 : 8 + size])
    if len(raw) < size:
        raise CheckpointError(
            f"the checkpoint is cut off inside its header ({len(raw)} of {size} bytes); download it again"
        )
    entries: dict[str, Any] = {}
    try:
        for name, value in _pairs(raw.decode()):
            name.encode()  # half a surrogate pair can be neither stored nor shown
            if name in entries:
                raise CheckpointError(f"the checkpoint is corrupt: its header names {name[:80]} twice")
            entries[name] = value
            if len(entries) > MAX_TENSORS:
                raise CheckpointError(f"the checkpoint has more than {MAX_TENSORS} tensors")
    except (ValueError, RecursionError):
        raise CheckpointError(_NO_JSON) from None
    return entries


def _pairs(text: str) -> Iterator[tuple[str, Any]]:
    """The entries of the outermost object. One that is longer than its maximum counts as a syntax error."""
    at = _after(text, 0, "{")
    more = text[at : at + 1] != "}"
    while more:
        if text[at : at + 1] != '"':
            raise ValueError(at)
        name, at = _value(text, at, _MAX_ENTRY)
        at = _after(text, at, ":")
        value, at = _value(text, at, 2 * MAX_MANIFEST if name == METADATA else _MAX_ENTRY)
        yield name, value
        more = text[at : at + 1] == ","
        at = _after(text, at, ",") if more else at
    if _after(text, at, "}") != len(text):
        raise ValueError(at)


def _after(text: str, at: int, sign: str) -> int:
    at = _blank(text, at)
    if text[at : at + 1] != sign:
        raise ValueError(at)
    return _blank(text, at + 1)


def _blank(text: str, at: int) -> int:
    found = _BLANKS.match(text, at)
    return found.end() if found else at


def _value(text: str, at: int, most: int) -> tuple[Any, int]:
    value, length = _DECODER.raw_decode(text[at : at + most])
    return value, _blank(text, at + length)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise CheckpointError("the checkpoint is corrupt: a key appears twice in its header")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(name)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _manifest(metadata: Any) -> Manifest:
    text = metadata.get(MANIFEST) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise CheckpointError("this safetensors file is not a Trainhop checkpoint: its header has no manifest")
    if len(text) > MAX_MANIFEST:
        raise CheckpointError(f"the checkpoint is corrupt: its manifest is longer than {MAX_MANIFEST} characters")
    try:
        found = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair cannot be stored
        protocol = found.get("protocol") if isinstance(found, dict) else None
        if isinstance(protocol, int) and protocol > PROTOCOL_VERSION:
            raise CheckpointError(
                f"the checkpoint has protocol {protocol}, this program {PROTOCOL_VERSION}; update Trainhop "
                "on this machine"
            )
        return Manifest.model_validate(found)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"]) or "manifest"
        raise CheckpointError(f"the checkpoint's manifest is not valid at {where}: {fault['msg']}") from None
    except (ValueError, RecursionError):
        raise CheckpointError("the checkpoint is corrupt: its manifest is not JSON") from None


def _in_order(tensors: dict[str, Entry], body: int) -> dict[str, Entry]:
    """The tensors in the order of their bytes, which must follow each other from the header to the file's end."""
    expected, ordered = 0, sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end))
    for name, entry in ordered:
        if entry.begin != expected or entry.end - entry.begin != _bytes(entry):
            raise CheckpointError(f"the checkpoint is corrupt: the offset of tensor {name} does not match its header")
        if entry.end > body:
            raise CheckpointError(f"the checkpoint is cut off inside tensor {name}; download it again")
        expected = entry.end
    if expected != body:
        raise CheckpointError(f"the checkpoint is corrupt: {body - expected} bytes follow its last tensor")
    return dict(ordered)


def _bytes(entry: Entry) -> int:
    return np.dtype(DTYPES[entry.dtype]).itemsize * math.prod(entry.shape)


def _entry(name: str, value: Any) -> Entry:
    try:
        begin, end = value["data_offsets"]
        shape, dtype = value["shape"], value["dtype"]
        sizes = (begin, end, *shape)
        if (
            isinstance(shape, list)
            and len(shape) <= _MAX_DIMENSIONS
            and dtype in DTYPES
            and all(type(n) is int and 0 <= n <= _MAX_LENGTH for n in sizes)
            and math.prod(max(n, 1) for n in shape) <= _MAX_LENGTH  # NumPy refuses more, even if one length is 0
        ):
            return Entry(dtype, tuple(shape), begin, end)
    except (KeyError, TypeError, ValueError):
        pass
    raise CheckpointError(f"the checkpoint is corrupt: the header entry of tensor {name} cannot be read")
