"""Rows of a dataset file, read and checked the same way by the server (at submit) and the worker (at start).

Reads JSON Lines, a JSON array, CSV and Parquet. Each fault is one `DatasetError` sentence with a 1-based line
(the row number in Parquet). Only Parquet needs a third-party package, imported when such a file is met.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from worker.shared.messages import FileFormat, RowFormat
from worker.shared.row_checks import DatasetError, Message, Row, refuse_unheeded, with_columns

MAX_LINE_BYTES = 16 * 2**20
"""A longer line is a file in some other format, not a training row; reading stops before it fills the memory."""

ROLES = ("system", "developer", "user", "assistant", "tool")
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
_COLUMNS: dict[RowFormat, tuple[str, ...]] = {
    RowFormat.MESSAGES: ("messages",),
    RowFormat.SHAREGPT: ("conversations",),
    RowFormat.PROMPT_COMPLETION: ("prompt", "completion"),
    RowFormat.ALPACA: ("instruction", "output"),
    RowFormat.TEXT: ("text",),
}
_ACCEPTED = "; ".join(f"{', '.join(columns)} ({name})" for name, columns in _COLUMNS.items())


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What `inspect` found: the number of rows, their format and the file's container."""

    rows: int
    type: RowFormat
    file_format: FileFormat


def inspect(path: Path, row_format: RowFormat = RowFormat.AUTO, file_format: FileFormat | None = None) -> DatasetInfo:
    """Read and check every row of `path`, streaming. Raises `DatasetError` on the first fault, `OSError` on a bad file."""
    container = file_format or detect_file_format(path)
    kind, rows = _parsed(path, row_format, container)
    return DatasetInfo(rows=sum(1 for _ in rows), type=kind, file_format=container)


def examine(
    path: Path, row_format: RowFormat = RowFormat.AUTO, file_format: FileFormat | None = None
) -> tuple[RowFormat | None, Iterator[Row | DatasetError]]:
    """Like `read_rows`, but with the faults of single rows among the rows; a fault of the file itself comes last."""
    try:
        container = file_format or detect_file_format(path)
        records = _READERS[container](path)
        first = next(records, None)
        if first is None:
            raise DatasetError("the file has no rows; give it at least one")
        kind = detect_row_format(first[1], first[0]) if row_format is RowFormat.AUTO else row_format
    except DatasetError as error:
        return None, iter([error])
    return kind, _rows_and_faults(kind, first, records)


def _rows_and_faults(
    kind: RowFormat, first: tuple[int, dict[str, Any]], rest: Iterator[tuple[int, dict[str, Any]]]
) -> Iterator[Row | DatasetError]:
    def each() -> Iterator[tuple[int, dict[str, Any]]]:
        yield first
        yield from rest

    try:
        for line, record in each():
            try:
                row = _row(kind, line, record)
            except DatasetError as error:
                yield error
            else:
                yield row
    except DatasetError as error:
        yield error


def read_rows(
    path: Path, row_format: RowFormat = RowFormat.AUTO, file_format: FileFormat | None = None
) -> Iterator[Row]:
    """The rows of `path` in file order. Raises `DatasetError` at the first fault, `OSError` on a bad file."""
    _, rows = _parsed(path, row_format, file_format or detect_file_format(path))
    yield from rows


def detect_file_format(path: Path) -> FileFormat:
    """Tell the container from the first bytes, since uploads are stored without a suffix."""
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"PAR1"):
        return FileFormat.PARQUET
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        raise DatasetError("the file is empty; give it at least one row")
    return FileFormat.JSONL if text[:1] in b"{[" and path.suffix.lower() != ".csv" else FileFormat.CSV


def detect_row_format(keys: Iterable[str], line: int) -> RowFormat:
    """The format whose columns are all among `keys`. Raises `DatasetError` listing the keys found."""
    found = set(keys)
    for name, columns in _COLUMNS.items():
        if found.issuperset(columns):
            return name
    raise DatasetError(f"unknown row format with keys {sorted(found)}; accepted are: {_ACCEPTED}", line)


def _parsed(path: Path, wanted: RowFormat, container: FileFormat) -> tuple[RowFormat, Iterator[Row]]:
    records = _READERS[container](path)
    first = next(records, None)
    if first is None:
        raise DatasetError("the file has no rows; give it at least one")
    line, record = first
    kind = detect_row_format(record, line) if wanted is RowFormat.AUTO else wanted
    return kind, _rows(kind, first, records)


def _rows(
    kind: RowFormat, first: tuple[int, dict[str, Any]], rest: Iterator[tuple[int, dict[str, Any]]]
) -> Iterator[Row]:
    opening = _row(kind, *first)
    yield opening
    for line, record in rest:
        row = _row(kind, line, record)
        if bool(row.messages) != bool(opening.messages):
            raise DatasetError(
                "mixes plain strings and message lists with the first row; use one of them throughout", line
            )
        yield row


def _row(kind: RowFormat, line: int, record: dict[str, Any]) -> Row:
    missing = [name for name in _COLUMNS[kind] if record.get(name) is None]
    if missing:
        for other, columns in _COLUMNS.items():
            if other is not kind and all(record.get(name) is not None for name in columns):
                raise DatasetError(f"is a '{other}' row in a '{kind}' dataset; keep to one format per file", line)
        names = ", ".join(f"'{name}'" for name in missing)
        raise DatasetError(f"column {names} is missing; a '{kind}' row needs {', '.join(_COLUMNS[kind])}", line)
    row = _PARSERS[kind](record, line)
    if row.messages:
        row = with_columns(row, record, line)
    try:
        for text in (row.prompt, row.text, *(turn.content for turn in row.messages)):
            text.encode()
    except UnicodeEncodeError:  # JSON may escape one half of a surrogate pair; no tokenizer takes it
        raise DatasetError(
            "holds half a character (an escaped surrogate without its pair); mend the row", line
        ) from None
    return row


# --- row formats -------------------------------------------------------------------------------------------


def _from_messages(record: dict[str, Any], line: int) -> Row:
    return _conversation(_turns(record["messages"], "messages", line), line)


def _from_sharegpt(record: dict[str, Any], line: int) -> Row:
    turns = _turns(record["conversations"], "conversations", line, role="from", content="value")
    return _conversation(turns, line)


def _from_prompt_completion(record: dict[str, Any], line: int) -> Row:
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return Row(prompt=prompt, text=_filled(completion, "completion", line))
    if isinstance(prompt, str) or isinstance(completion, str):
        raise DatasetError("'prompt' and 'completion' must both be strings or both be lists of messages", line)
    before = _turns(prompt, "prompt", line)
    return _conversation(before + _turns(completion, "completion", line), line, given=len(before))


def _from_alpaca(record: dict[str, Any], line: int) -> Row:
    question = _filled(record["instruction"], "instruction", line)
    extra = record.get("input")
    if extra is not None and not isinstance(extra, str):
        raise DatasetError("'input' must be a string", line)
    if extra and extra.strip():
        question = f"{question}\n\n{extra}"
    return Row(messages=(Message("user", question), Message("assistant", _filled(record["output"], "output", line))))


def _from_text(record: dict[str, Any], line: int) -> Row:
    return Row(text=_filled(record["text"], "text", line))


_PARSERS: dict[RowFormat, Callable[[dict[str, Any], int], Row]] = {
    RowFormat.MESSAGES: _from_messages,
    RowFormat.SHAREGPT: _from_sharegpt,
    RowFormat.PROMPT_COMPLETION: _from_prompt_completion,
    RowFormat.ALPACA: _from_alpaca,
    RowFormat.TEXT: _from_text,
}


def _filled(value: Any, column: str, line: int) -> str:
    if not isinstance(value, str):
        raise DatasetError(f"'{column}' must be a string, not {type(value).__name__}", line)
    if not value.strip():
        raise DatasetError(f"'{column}' is empty; fill it in or remove the row", line)
    return value


def _turns(value: Any, column: str, line: int, role: str = "role", content: str = "content") -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise DatasetError(f"'{column}' must be a list of {{'{role}', '{content}'}} objects", line)
    turns = []
    for turn in value:
        refuse_unheeded(turn, column, line)
        who = turn.get(role) if isinstance(turn, dict) else None
        said = turn.get(content) if isinstance(turn, dict) else None
        if not isinstance(who, str) or not isinstance(said, str):
            raise DatasetError(f"each turn in '{column}' needs the strings '{role}' and '{content}'", line)
        known = _SHAREGPT_ROLES.get(who) if role == "from" else who if who in ROLES else None
        if known is None:
            accepted = ", ".join(_SHAREGPT_ROLES if role == "from" else ROLES)
            raise DatasetError(f"unknown {role} '{who}' in '{column}'; accepted are {accepted}", line)
        turns.append(Message(known, said))
    return tuple(turns)


def _conversation(turns: tuple[Message, ...], line: int, given: int = 0) -> Row:
    if not any(turn.role == "assistant" and turn.content.strip() for turn in turns[given:]):
        raise DatasetError("has no assistant turn to learn from; add one or remove the row", line)
    return Row(messages=turns, given=given)


# --- containers --------------------------------------------------------------------------------------------


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


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
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


def _read_array(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Elements of a top-level JSON array with the line each begins on; the whole text is held in memory."""
    with path.open("rb") as file:
        text = "".join(line for _, line in _lines(file))
    decoder = json.JSONDecoder()
    at, line, counted, begun = text.index("[") + 1, 1, 0, False
    while True:
        at = _skip_blanks(text, at)
        if text[at : at + 1] == "]":
            break
        if begun:
            at = _skip_blanks(text, _after_comma(text, at))
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            where = error.lineno if isinstance(error, json.JSONDecodeError) else line
            raise DatasetError(f"is not valid JSON ({_why(error)}); check the array of objects", where) from None
        begun = True
        yield line, _object(value, line)
    at = _skip_blanks(text, at + 1)
    if at < len(text):
        raise DatasetError("text after the end of the array; remove it", 1 + text.count("\n", 0, at))


def _after_comma(text: str, at: int) -> int:
    if text[at : at + 1] != ",":
        what = "a comma is missing between two rows" if at < len(text) else "the array is not closed"
        raise DatasetError(f"is not valid JSON ({what}); check the array of objects", 1 + text.count("\n", 0, at))
    return at + 1


def _skip_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(MAX_LINE_BYTES)
    with path.open("rb") as file:
        reader = csv.DictReader((text for _, text in _lines(file)), strict=True)
        while True:
            try:
                record = next(reader, None)
            except csv.Error as error:
                raise DatasetError(
                    f"is not valid CSV ({error}); quote fields that hold commas or quotes", reader.reader.line_num
                ) from None
            if record is None:
                return
            if None in record:
                raise DatasetError("has more fields than the header; quote fields that hold commas", reader.line_num)
            yield reader.line_num, {str(name).strip(): value for name, value in record.items()}


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise DatasetError("reading Parquet needs pyarrow; install it or convert the file to JSON Lines") from None
    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise DatasetError(f"is not a readable Parquet file ({reason}); write it again") from None


_READERS: dict[FileFormat, Callable[[Path], Iterator[tuple[int, dict[str, Any]]]]] = {
    FileFormat.JSONL: _read_jsonl,
    FileFormat.CSV: _read_csv,
    FileFormat.PARQUET: _read_parquet,
}
