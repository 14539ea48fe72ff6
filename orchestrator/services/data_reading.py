"""Reads members' data files for the server: a large or packed one in a process of its own, with limits."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from orchestrator.services import dataset_preview
from orchestrator.services.dataset_preview import Bar, Preview, Turn
from worker.shared import dataset_files, limited_call
from worker.shared.dataset_files import DatasetError, DatasetInfo
from worker.shared.dataset_spec import FileFormat, RowFormat, TaughtTurns
from worker.shared.row_keys import UnusedKeys
from worker.shared.taught_turns import USUAL

SMALL_BYTES = 256 << 10
"""A text file of this size is read at once, because a process costs more time than it does."""
CPU_S, CPU_S_PER_MIB, UNPACKED = 10, 1, 4
"""Computing time for a file, and per MiB of its size. A packed file takes longer."""
Json = dict[str, Any]


def inspect(path: Path, row_format: RowFormat, container: FileFormat) -> DatasetInfo:
    """Read and check every row. Raises `DatasetError` at the first invalid row, and for a file beyond the limits."""
    if is_small(path, container):
        return dataset_files.inspect(path, row_format, container)
    facts = within_limits(f"{__name__}:inspected", path, container, {"row_format": row_format})
    return DatasetInfo(
        rows=facts["rows"],
        type=RowFormat(facts["type"]),
        file_format=FileFormat(facts["file_format"]),
        unused=tuple(facts["unused"]),
    )


def first_keys(path: Path, row_format: RowFormat, container: FileFormat, rows: int) -> tuple[str, ...]:
    """Keys of the first rows that training does not use. None for a file beyond the limits."""
    request: Json = {"path": str(path), "row_format": row_format, "container": container, "rows": rows}
    if is_small(path, container):
        return tuple(keyed(request)["keys"])
    try:
        return tuple(within_limits(f"{__name__}:keyed", path, container, request)["keys"])
    except DatasetError:
        return ()


def preview(
    path: Path,
    row_format: RowFormat,
    container: FileFormat,
    *,
    sequence_len: int,
    train_on_inputs: bool,
    taught: TaughtTurns = USUAL,
) -> Preview:
    """`dataset_preview.preview`. A file beyond the limits has this as its fault."""
    how: Json = {"sequence_len": sequence_len, "train_on_inputs": train_on_inputs}
    if is_small(path, container):
        return dataset_preview.preview(path, row_format, container, **how, taught=taught)
    try:
        options = {"row_format": row_format, **how, "taught": taught.model_dump(mode="json")}
        return _as_preview(within_limits(f"{__name__}:previewed", path, container, options))
    except DatasetError as error:
        return with_fault(error)


def with_fault(error: DatasetError) -> Preview:
    """The preview of a file that cannot be read."""
    return Preview(
        type="",
        rows=0,
        tokens=0,
        shown=(),
        faults=((error.line, error.message),),
        more_faults=0,
        truncated=0,
        repeated=0,
        bars=(),
        measured=0,
    )


def is_small(path: Path, container: FileFormat) -> bool:
    """Whether the file may be read without a process of its own."""
    return container is not FileFormat.PARQUET and path.stat().st_size <= SMALL_BYTES


def within_limits(function: str, path: Path, container: FileFormat, how: Json, *, size: int | None = None) -> Json:
    """The answer of `module:name` about a file, from a process with limits. `size` is more than its own for several.

    Raises `DatasetError` if the answer has a `fault`, and for a file beyond the limits.
    """
    mib = (path.stat().st_size if size is None else size) >> 20
    cpu_s = CPU_S + mib * CPU_S_PER_MIB * (UNPACKED if container is FileFormat.PARQUET else 1)
    request = {"path": str(path), "container": container, **how}
    try:
        answer = limited_call.call(function, request, cpu_s=cpu_s)
    except limited_call.LimitError as error:
        raise DatasetError(f"cannot be read, because {error}; split the file or its rows") from None
    if "fault" in answer:
        raise DatasetError(answer["fault"], answer["line"])
    return answer


def inspected(request: Json) -> Json:
    """`inspect` in the process with limits."""
    try:
        return asdict(
            dataset_files.inspect(
                Path(request["path"]), RowFormat(request["row_format"]), FileFormat(request["container"])
            )
        )
    except DatasetError as error:
        return {"fault": error.message, "line": error.line}


def keyed(request: Json) -> Json:
    """`first_keys` in the process with limits."""
    found = UnusedKeys()
    row_format, container = RowFormat(request["row_format"]), FileFormat(request["container"])
    for row in islice(dataset_files.examine(Path(request["path"]), row_format, container)[1], request["rows"]):
        if not isinstance(row, DatasetError):  # the last row may be cut
            found.add(row.unused)
    return {"keys": list(found.names)}


def previewed(request: Json) -> Json:
    """`preview` in the process with limits."""
    return asdict(
        dataset_preview.preview(
            Path(request["path"]),
            RowFormat(request["row_format"]),
            FileFormat(request["container"]),
            sequence_len=request["sequence_len"],
            train_on_inputs=request["train_on_inputs"],
            taught=TaughtTurns(**request["taught"]),
        )
    )


def _as_preview(facts: Json) -> Preview:
    parts: Json = {
        "shown": tuple(tuple(Turn(**turn) for turn in row) for row in facts["shown"]),
        "faults": tuple((line, words) for line, words in facts["faults"]),
        "bars": tuple(Bar(**bar) for bar in facts["bars"]),
        "by_token": (),
        "unused": tuple(facts["unused"]),
        "findings": (),
    }
    return Preview(**facts | parts)
