"""Makes of the files that people have the one that machines read: unpacked, as UTF-8, with the usual columns.

A file that machines can read as it is stays as it is. What is packed or has another encoding becomes the same lines as
UTF-8. All else (other names of columns, JSON in a cell, other separators, several shards) becomes JSON lines. So no
machine needs to know how to read it, and the sha256 of the made file says everything that was read. Rows keep the lines
that they had, so that an error names the line of the file that a person has.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from gzip import GzipFile
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from orchestrator.services.data_reading import SMALL_BYTES, UNPACKED, within_limits
from orchestrator.services.mapped_columns import Columns, has_cells
from worker.shared.dataset_containers import MAX_RATIO, READERS, ROOM_BYTES, Record, csv_separator, read_csv
from worker.shared.dataset_spec import DatasetSpec, FileFormat, RowFormat
from worker.shared.row_keys import DatasetError

MAX_FILES = 256
"""Shards of one dataset."""
PIECE_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Most:
    """Bytes of a made file, and of what a packed one unpacks to: `room`, and `ratio` times its size."""

    made: int = 4 << 30
    room: int = ROOM_BYTES
    ratio: int = MAX_RATIO


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file as it came, and its name."""

    path: Path
    name: str


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The file to keep, how it is read, and its name. `unread` are columns that others were named in place of."""

    path: Path
    name: str
    container: FileFormat
    row_format: RowFormat
    unread: tuple[str, ...] = ()


@contextmanager
def prepared(
    sources: Sequence[Source],
    container: FileFormat,
    row_format: RowFormat,
    mapping: Mapping[str, Any],
    *,
    apart: Callable[..., Json] = within_limits,
) -> Generator[Prepared]:
    """The sources, in this order, as one file that machines read. It is deleted afterwards unless it is the source.

    `mapping` names columns, as `DatasetSpec.mapping` does. `apart` replaces the process with limits, for tests. Raises
    `DatasetError`.
    """
    first = sources[0]
    with TemporaryDirectory(prefix="trainhop-rows-") as folder:
        asked: Json = {
            "sources": [{"path": str(each.path), "name": each.name} for each in sources],
            "row_format": row_format,
            "mapping": dict(mapping),
            "folder": folder,
        }
        is_packed = any(map(_is_packed, sources))
        size = sum(each.path.stat().st_size for each in sources) * (UNPACKED if is_packed else 1)
        if container is not FileFormat.PARQUET and size <= SMALL_BYTES and not is_packed:
            made = made_in({"container": container, **asked})
        else:
            made = apart(f"{__name__}:made_or_fault", first.path, container, asked, size=size)
        path = Path(made["path"])
        yield Prepared(
            path=path,
            name=_plain_name(first.name, is_made=made["is_made"]),
            container=FileFormat(made["container"]),
            row_format=RowFormat(made["row_format"]),
            unread=tuple(made["unread"]),
        )


def _is_packed(source: Source) -> bool:
    with source.path.open("rb") as file:
        return file.read(2) == _GZIP


def _plain_name(name: str, *, is_made: bool) -> str:
    plain = name[:-3] if name.lower().endswith(".gz") else name
    return f"{Path(plain).stem}.jsonl" if is_made else plain


def made_or_fault(request: Json) -> Json:
    """`made_in` in the process with limits."""
    try:
        return made_in(request)
    except DatasetError as error:
        return {"fault": error.message, "line": error.line}


def made_in(request: Json, most: Most | None = None) -> Json:
    """The file that machines read, in the folder of the request or the source itself."""
    most = most or Most()
    container, wanted = FileFormat(request["container"]), RowFormat(request["row_format"])
    sources = [Source(path=Path(each["path"]), name=each["name"]) for each in request["sources"]]
    if len(sources) > MAX_FILES:
        raise DatasetError(f"has more than {MAX_FILES} shards; upload one file")
    folder = Path(request["folder"])
    several = len(sources) > 1
    plain = [
        _Plain.of(each, container, folder / f"plain-{place}", most, several=several)
        for place, each in enumerate(sources)
    ]
    columns = Columns(DatasetSpec.model_validate({"path": "x", "type": wanted, **request["mapping"]}))
    first = next(plain[0].records(), None)
    done = {"path": str(plain[0].path), "container": container, "row_format": wanted, "unread": (), "is_made": False}
    if first is None:
        if not several:
            return done  # the reader says what is wrong with it
    else:
        columns.begin(*first)
    if not (several or plain[0].separator != "," or columns.renames or has_cells(first)):
        return done
    out = folder / "rows.jsonl"
    _write(chain.from_iterable(each.rows(columns) for each in plain), out, most.made, in_line=not several)
    columns.end()
    made = {"container": FileFormat.JSONL, "row_format": columns.row_format, "unread": columns.unread}
    return done | made | {"path": str(out), "is_made": True}


@dataclass(frozen=True, kw_only=True)
class _Plain:
    """A source without its packing, as UTF-8. `title` stands before its errors if it is one of several."""

    path: Path
    container: FileFormat
    separator: str = ","
    title: str = ""

    @classmethod
    def of(cls, source: Source, container: FileFormat, out: Path, most: Most, *, several: bool) -> _Plain:
        path = source.path
        if _is_packed(source):
            path = _unpacked(path, out.with_suffix(".unpacked"), most)
        if container is not FileFormat.PARQUET and (encoding := _wide_encoding(path)):
            path = _as_utf8(path, encoding, out.with_suffix(".utf8"), most.made)
        separator = csv_separator(path, source.name) if container is FileFormat.CSV else ","
        return cls(path=path, container=container, separator=separator, title=source.name if several else "")

    def records(self) -> Iterator[Record]:
        if self.container is FileFormat.CSV:
            return read_csv(self.path, self.separator)
        return READERS[self.container](self.path)

    def rows(self, columns: Columns) -> Iterator[Record]:
        try:
            for line, record in self.records():
                yield line, columns.renamed(line, record)
        except DatasetError as error:
            if not self.title:
                raise
            raise DatasetError(f"{error.message} (in {self.title})", error.line) from None


def _unpacked(path: Path, out: Path, limits: Most) -> Path:
    most = min(limits.made, limits.room + limits.ratio * path.stat().st_size)
    try:
        with GzipFile(path, "rb") as packed, out.open("wb") as plain:
            _copy(iter(partial(packed.read, PIECE_BYTES), b""), plain, most, f"unpacks to more than {most >> 20} MiB")
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"is not a readable gzip file ({error or 'it is cut off'}); pack it again") from None
    if _is_packed(Source(path=out, name="")):
        raise DatasetError("is packed twice; unpack it once")
    return out


def _copy(pieces: Iterator[bytes], out: BinaryIO, most: int, fault: str) -> None:
    written = 0
    for piece in pieces:
        written += len(piece)
        if written > most:
            raise DatasetError(f"{fault}; split the file")
        out.write(piece)


def _wide_encoding(path: Path) -> str:
    """UTF-16 or UTF-32 by the mark at the start, or by where the zero bytes of its first two letters are. Else ""."""
    with path.open("rb") as file:
        head = file.read(4)
    if head in (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff"):
        return "utf-32"
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    zeros = "".join("0" if byte == 0 else "x" for byte in head)
    return {"x0x0": "utf-16-le", "0x0x": "utf-16-be"}.get(zeros, "")


def _as_utf8(path: Path, encoding: str, out: Path, most: int) -> Path:
    def pieces() -> Iterator[bytes]:
        with io.TextIOWrapper(path.open("rb"), encoding, newline="") as text:
            while piece := text.read(PIECE_BYTES):
                yield piece.encode()

    try:
        with out.open("wb") as plain:
            _copy(pieces(), plain, most, f"has more than {most >> 20} MiB as UTF-8")
    except UnicodeError:
        raise DatasetError(f"is not valid {encoding.upper()[:6]}; save the file as UTF-8") from None
    return out


def _write(rows: Iterator[Record], out: Path, most: int, *, in_line: bool) -> None:
    """Write the rows as JSON lines. With `in_line` each is in the line that it had, where that is possible."""
    at, written = 1, 0
    with out.open("wb") as file:
        for line, row in rows:
            text = _as_json(row)
            blanks = max(0, line - at) if in_line else 0
            written += blanks + len(text)
            if written > most:
                raise DatasetError(f"has more than {most >> 20} MiB of rows; split the file", line)
            file.write(b"\n" * blanks)
            file.write(text)
            at += blanks + 1


def _as_json(row: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, default=_named).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which the check of the rows names
        return json.dumps(row, default=_named).encode() + b"\n"


def _named(value: object) -> str:
    """A value that JSON does not have. No row format reads one."""
    return f"{len(value)} bytes" if isinstance(value, bytes | bytearray) else str(value)[:200]
