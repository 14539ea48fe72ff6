"""Reads and checks the rows of a dataset file, the same way on the server (at submit) and the worker (at start).

Reads JSON Lines, a JSON array, CSV and Parquet. Each error is one `DatasetError` sentence with a 1-based line number
(the row number in Parquet). Only Parquet needs a third-party package, which is imported on demand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from worker.shared.dataset_containers import READERS, Record
from worker.shared.dataset_spec import FileFormat, RowFormat
from worker.shared.row_formats import detect_row_format, to_row
from worker.shared.row_keys import DatasetError, UnusedKeys
from worker.shared.rows import Message, Row

__all__ = ["DatasetError", "DatasetInfo", "Message", "Row", "examine", "inspect", "numbered_rows", "read_rows"]


NOTHING_TAUGHT = (
    "no row has a turn to train on, because each answer says 'train': false or 'weight': 0; say true or 1 where the "
    "model is to learn"
)


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """The result of `inspect`: the number of rows, their format, the file's container, and keys that are not used."""

    rows: int
    type: RowFormat
    file_format: FileFormat
    unused: tuple[str, ...] = ()


def inspect(path: Path, row_format: RowFormat = RowFormat.AUTO, file_format: FileFormat | None = None) -> DatasetInfo:
    """Read and check every row of `path` as a stream.

    Raises `DatasetError` at the first invalid row, `OSError` on an unreadable file.
    """
    container = file_format or detect_file_format(path)
    kind, rows = _parsed(path, row_format, container)
    count, unused, is_taught = 0, UnusedKeys(), kind is RowFormat.TASK
    for row in rows:
        count += 1
        unused.add(row.unused)
        is_taught = is_taught or not row.messages or bool(row.taught)
    if not is_taught:
        raise DatasetError(NOTHING_TAUGHT)
    return DatasetInfo(rows=count, type=kind, file_format=container, unused=unused.names)


def examine(
    path: Path, row_format: RowFormat = RowFormat.AUTO, file_format: FileFormat | None = None
) -> tuple[RowFormat | None, Iterator[Row | DatasetError]]:
    """Like `read_rows`, but yields the errors of single rows among the rows. An error of the file itself comes last."""
    try:
        kind, first, records = _opened(path, row_format, file_format or detect_file_format(path))
    except DatasetError as error:
        return None, iter([error])
    return kind, _rows_and_faults(kind, first, records)


def _rows_and_faults(kind: RowFormat, first: Record, rest: Iterator[Record]) -> Iterator[Row | DatasetError]:
    def each() -> Iterator[Record]:
        yield first
        yield from rest

    labels: set[bool | None] = set()
    try:
        for line, record in each():
            try:
                row = to_row(kind, line, record)
            except DatasetError as error:
                yield error
            else:
                labels.add(row.desirable)
                yield row
        _check_labels(kind, labels)
    except DatasetError as error:
        yield error


def read_rows(
    path: Path,
    row_format: RowFormat = RowFormat.AUTO,
    file_format: FileFormat | None = None,
    *,
    all_keys: bool = True,
) -> Iterator[Row]:
    """The rows of `path` in file order. Without `all_keys`, keys that no format reads fall away, as they once did.

    Raises `DatasetError` at the first invalid row, `OSError` on an unreadable file.
    """
    _, rows = _parsed(path, row_format, file_format or detect_file_format(path), all_keys=all_keys)
    yield from rows


def numbered_rows(
    path: Path, row_format: RowFormat = RowFormat.AUTO, file_format: FileFormat | None = None, *, every: int = 1
) -> Iterator[tuple[int, Row]]:
    """Every `every`-th row of `path` with its line, from the first one. The others are read, but not checked.

    Raises `DatasetError` at the first invalid row, `OSError` on an unreadable file.
    """
    kind, first, records = _opened(path, row_format, file_format or detect_file_format(path))
    chosen = islice(records, every - 1, None, every)
    yield from _numbered(kind, first, chosen, all_keys=True)


def detect_file_format(path: Path) -> FileFormat:
    """Detect the container from the first bytes, since uploads are stored without a suffix."""
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"PAR1"):
        return FileFormat.PARQUET
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        raise DatasetError("the file is empty; give it at least one row")
    return FileFormat.JSONL if text[:1] in b"{[" and path.suffix.lower() != ".csv" else FileFormat.CSV


def _opened(path: Path, wanted: RowFormat, container: FileFormat) -> tuple[RowFormat, Record, Iterator[Record]]:
    records = READERS[container](path)
    first = next(records, None)
    if first is None:
        raise DatasetError("the file has no rows; give it at least one")
    return detect_row_format(first[1], first[0]) if wanted is RowFormat.AUTO else wanted, first, records


def _parsed(
    path: Path, wanted: RowFormat, container: FileFormat, *, all_keys: bool = True
) -> tuple[RowFormat, Iterator[Row]]:
    kind, first, records = _opened(path, wanted, container)

    def rows() -> Iterator[Row]:
        labels: set[bool | None] = set()
        for _, row in _numbered(kind, first, records, all_keys=all_keys):
            labels.add(row.desirable)
            yield row
        _check_labels(kind, labels)

    return kind, rows()


def _check_labels(kind: RowFormat, labels: set[bool | None]) -> None:
    """Raise `DatasetError` for a file of labelled rows that all have the same label."""
    if kind is RowFormat.UNPAIRED_PREFERENCE and len(labels) == 1:
        only = str(labels.pop()).lower()
        raise DatasetError(
            f"every 'label' of the file is {only}, and rl: kto needs good answers (true) and bad ones (false); to "
            "learn all of them as answers, set type: prompt_completion"
        )


def _numbered(kind: RowFormat, first: Record, rest: Iterator[Record], *, all_keys: bool) -> Iterator[tuple[int, Row]]:
    opening = to_row(kind, *first, all_keys=all_keys)
    yield first[0], opening
    for line, record in rest:
        row = to_row(kind, line, record, all_keys=all_keys)
        if bool(row.messages) != bool(opening.messages):
            raise DatasetError(
                "mixes plain strings and message lists with the first row; use one of them throughout", line
            )
        yield line, row
