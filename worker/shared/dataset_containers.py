"""The records of a dataset file: JSON Lines, a JSON array, CSV and Parquet, each with the line where it is.

Every record has a maximum, and only a few are in memory at a time, whatever the file says. Only Parquet needs a
third-party package, which is imported on demand.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from worker.shared.dataset_spec import FileFormat
from worker.shared.row_keys import DatasetError

MAX_LINE_BYTES = 16 * 2**20
"""A longer line or row is not a training row but some other file format. Reading stops before memory fills up."""
MAX_COLUMNS = 1_000
MAX_HEADER_BYTES = 1 << 20
"""Of the first line of a CSV file, in which its separator is looked for."""
MAX_PARQUET_COLUMNS = 10_000
"""Including those inside of others."""
LINE_COST = 64
"""A short line of a CSV record that spans many lines counts for this many bytes more, because it takes time."""
BATCH_ROWS, MAX_BATCH_BYTES = 32, 64 * 2**20
ROOM_BYTES, MAX_RATIO = 256 * 2**20, 100
"""A Parquet file may unpack to this many bytes and, beyond that, to this many times its size."""

Record = tuple[int, dict[str, Any]]


def _lines(file: BinaryIO) -> Iterator[tuple[int, str]]:
    number = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            raise DatasetError(f"is longer than {MAX_LINE_BYTES // 2**20} MiB; write one row per line", number)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise DatasetError("is not UTF-8; save the file as UTF-8", number) from None
        yield number, text.removeprefix("\ufeff") if number == 1 else text


def _object(value: Any, line: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DatasetError(f"must be a JSON object, not {type(value).__name__}", line)
    return value


def _read_jsonl(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        first = True
        for number, text in _lines(file):
            if not text.strip():
                continue
            if first and text.lstrip().startswith("["):
                break
            first = False
            try:
                value = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise DatasetError(
                    f"is not valid JSON ({_why(error)}); write one JSON object per line", number
                ) from None
            yield number, _object(value, number)
        else:
            return
    yield from _read_array(path)


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"


def _read_array(path: Path) -> Iterator[Record]:
    """Elements of a top-level JSON array with the line of each."""
    with path.open("rb") as file:
        text = _Window(_lines(file))
        text.take("[", "")
        more = text.next() != "]"
        while more:
            line = text.line
            yield line, _object(text.value(), line)
            more = text.next() != "]"
            if more:
                text.take(",", "a comma is missing between two rows" if text.next() else "the array is not closed")
                text.next()
        text.take("]", "")
        if text.next():
            raise DatasetError("text after the end of the array; remove it", text.line)


class _Window:
    """The part of a JSON text that is being read. It grows until a value is complete."""

    def __init__(self, lines: Iterator[tuple[int, str]]) -> None:
        self._lines, self._decoder = lines, json.JSONDecoder()
        self._text, self._at = "", 0
        self._line, self._counted = 1, 0

    @property
    def line(self) -> int:
        """The line of the next character."""
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def next(self) -> str:
        """The next character that is not blank. Empty at the end of the file."""
        while True:
            self._at = _skip_blanks(self._text, self._at)
            if self._at < len(self._text) or not self._grow():
                return self._text[self._at : self._at + 1]

    def take(self, sign: str, fault: str) -> None:
        """Go past this character. Raises `DatasetError` if it is another one."""
        if self.next() != sign:
            raise DatasetError(f"is not valid JSON ({fault}); check the array of objects", self.line)
        self._at += 1

    def value(self) -> Any:
        """Go past one value."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                self._refuse_longer(len(self._text))
                fault = self._fault(error)
                if not (self._may_be_cut(error) and self._grow()):
                    raise fault from None
            else:
                self._refuse_longer(end)
                self._at = end
                return value

    def _refuse_longer(self, end: int) -> None:
        if end - self._at > MAX_LINE_BYTES:
            raise DatasetError(f"is longer than {MAX_LINE_BYTES // 2**20} MiB; split the row", self.line)

    def _may_be_cut(self, error: Exception) -> bool:
        if not isinstance(error, json.JSONDecodeError):
            return False
        return error.msg.startswith("Unterminated string") or error.pos > len(self._text) - 32

    def _fault(self, error: Exception) -> DatasetError:
        where = self.line
        if isinstance(error, json.JSONDecodeError):
            where += self._text.count("\n", self._at, error.pos)
        return DatasetError(f"is not valid JSON ({_why(error)}); check the array of objects", where)

    def _grow(self) -> bool:
        """Forget what was read, and double what is left. False at the end of the file."""
        _ = self.line
        pieces = [self._text[self._at :]]
        length, wanted = len(pieces[0]), max(1 << 16, 2 * len(pieces[0]))
        for _, line in self._lines:
            pieces.append(line)
            length += len(line)
            if length >= wanted:
                break
        self._text, self._at, self._counted = "".join(pieces), 0, 0
        return len(pieces) > 1


def _skip_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def csv_separator(path: Path, name: str = "") -> str:
    """The sign between the columns of a CSV file. A comma wherever one is in its first line, outside of quotes.

    Otherwise a tab or a semicolon. A file whose `name` ends in .tsv has tabs.
    """
    if name.lower().endswith((".tsv", ".tsv.gz")):
        return "\t"
    with path.open("rb") as file:
        header = file.readline(MAX_HEADER_BYTES).decode("utf-8", "replace")
    outside = "".join(header.split('"')[::2])
    return next((sign for sign in (",", "\t", ";") if sign in outside), ",")


def read_csv(path: Path, separator: str = ",") -> Iterator[Record]:
    """The records of a CSV file with their last lines. Raises `DatasetError`."""
    csv.field_size_limit(MAX_LINE_BYTES)
    with path.open("rb") as file:
        record_bytes = 0

        def lines() -> Iterator[str]:
            nonlocal record_bytes
            for number, text in _lines(file):
                record_bytes += len(text) + LINE_COST
                if record_bytes > MAX_LINE_BYTES:
                    raise DatasetError(
                        f"ends a row that is longer than {MAX_LINE_BYTES // 2**20} MiB; close the quotes", number
                    )
                yield text

        reader = csv.DictReader(lines(), strict=True, delimiter=separator)
        while True:
            record_bytes = 0
            try:
                if len(reader.fieldnames or ()) > MAX_COLUMNS:
                    raise DatasetError(f"has more than {MAX_COLUMNS} columns; remove those that are not needed", 1)
                record = next(reader, None)
            except csv.Error as error:
                raise DatasetError(
                    f"is not valid CSV ({error}); quote fields that contain commas or quotes", reader.reader.line_num
                ) from None
            if record is None:
                return
            if None in record:
                raise DatasetError("has more fields than the header; quote fields that contain commas", reader.line_num)
            yield reader.line_num, {str(name).strip(): value for name, value in record.items()}


def _read_parquet(path: Path) -> Iterator[Record]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise DatasetError("reading Parquet needs pyarrow; install it or convert the file to JSON Lines") from None
    with path.open("rb"):
        pass  # an `OSError` of the file itself is none of its content
    try:
        # Pages are read as they are needed, not a whole column of a row group at once.
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            yield from _parquet_rows(file, path.stat().st_size)
    except (DatasetError, MemoryError):
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DatasetError(f"is not a readable Parquet file ({reason}); write it again") from None


def _parquet_rows(file: Any, size: int) -> Iterator[Record]:
    most = ROOM_BYTES + MAX_RATIO * size
    facts = file.metadata
    if facts.num_columns > MAX_PARQUET_COLUMNS:
        raise DatasetError(f"has more than {MAX_PARQUET_COLUMNS} columns; remove those that are not needed")
    if sum(facts.row_group(place).total_byte_size for place in range(facts.num_row_groups)) > most:
        raise DatasetError(_bomb(size))
    number = decoded = 0
    for batch in file.iter_batches(batch_size=BATCH_ROWS):
        bytes_here = sum(map(_decoded, batch.columns))
        decoded += bytes_here
        if decoded > most:
            raise DatasetError(_bomb(size), number + 1)
        if bytes_here > MAX_BATCH_BYTES or (bytes_here > MAX_LINE_BYTES and _longest(batch) > MAX_LINE_BYTES):
            raise DatasetError(f"is longer than {MAX_LINE_BYTES // 2**20} MiB; split the row", number + 1)
        for record in batch.to_pylist():
            number += 1
            yield number, {name: _without_nulls(value) for name, value in record.items()}


def _without_nulls(value: Any) -> Any:
    """The value without keys of no value: in Parquet, all objects of a column have the keys of all the others."""
    if isinstance(value, dict):
        entries: dict[str, Any] = value
        return {key: _without_nulls(each) for key, each in entries.items() if each is not None}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return value


def _decoded(array: Any) -> int:
    """Bytes of a column once it is decoded, or more: an entry of a dictionary may stand in every row."""
    from pyarrow import compute, types

    functions: Any = compute
    kind = array.type
    if types.is_dictionary(kind):
        values = array.dictionary
        is_text = types.is_string(values.type) or types.is_binary(values.type) or types.is_large_string(values.type)
        longest = functions.max(functions.binary_length(values)).as_py() if is_text else values.nbytes
        return len(array) * (8 + (longest or 0))
    if types.is_struct(kind):
        return sum(map(_decoded, array.flatten()))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) or types.is_map(kind):
        return 8 * len(array) + _decoded(array.flatten() if not types.is_map(kind) else array.items)
    return array.nbytes


def _longest(batch: Any) -> int:
    """Bytes of the longest row."""
    return max(sum(map(_decoded, batch.slice(place, 1).columns)) for place in range(batch.num_rows))


def _bomb(size: int) -> str:
    return f"unpacks to more than {MAX_RATIO} times its {size} bytes; write it again without repeated rows"


READERS: dict[FileFormat, Callable[[Path], Iterator[Record]]] = {
    FileFormat.JSONL: _read_jsonl,
    FileFormat.CSV: read_csv,
    FileFormat.PARQUET: _read_parquet,
}
