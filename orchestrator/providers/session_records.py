"""A driver's files of each session: a record that is written atomically, and the session's log."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import threading
from bisect import bisect_right
from dataclasses import asdict, replace
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from worker.shared.files import write_atomically
from worker.shared.messages import LINE_MARK

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S", bound="DataclassInstance")
MARK = f"{LINE_MARK} ".encode()
_MESSAGE = re.compile(re.escape(MARK) + rb"[0-9a-f]{64} |^" + re.escape(MARK))
MARK_EVERY = 1 << 16
START = [(0, 0)]
MAX_OUTBOX = 64 << 20
"""Maximum bytes that are read of a session's messages. A session of a day writes less than a tenth of it."""
WRITING = threading.RLock()


def left_messages(outbox: Path) -> tuple[str, ...]:
    """The lines in the first `MAX_OUTBOX` bytes of an outbox. Empty if there is no such file."""
    try:
        with outbox.open("rb") as file:
            return tuple(file.read(MAX_OUTBOX).decode(errors="replace").splitlines())
    except FileNotFoundError:
        return ()


def part_of(log: Path, offset: int, limit: int) -> bytes:
    """At most `limit` bytes of a log from `offset` on. Empty if there is no such file."""
    try:
        with log.open("rb") as file:
            file.seek(offset)
            return file.read(limit)
    except FileNotFoundError:
        return b""


class SessionNotes(Generic[S]):
    """One session's folder: `session.json` (a dataclass `kind` with a default for every field) and `output.log`."""

    def __init__(self, folder: Path, kind: type[S]) -> None:
        self.folder, self._kind = folder, kind
        self.log = folder / "output.log"

    def read(self) -> S:
        """The stored record. Default values for a session that was not launched by this server."""
        try:
            return self._kind(**json.loads((self.folder / "session.json").read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return self._kind()

    def write(self, **changes: object) -> S:
        """Update fields of the record atomically."""
        with WRITING:
            record = replace(self.read(), **changes)  # pyright: ignore[reportArgumentType]
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self.folder / "session.json", json.dumps(asdict(record)))
        return record

    def erase(self) -> None:
        """Remove the record and the log."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def shown(self, offset: int, limit: int) -> bytes:
        """A part of the log for people, without the messages to the server."""
        found = bytearray()
        with contextlib.suppress(FileNotFoundError), self.log.open("rb") as log:
            status = os.fstat(log.fileno())
            marks = (
                _marks(self.log, status.st_ino, status.st_size, status.st_mtime_ns) if offset > MARK_EVERY else START
            )
            at, place = marks[bisect_right(marks, offset, key=itemgetter(0)) - 1]
            log.seek(place)
            for line in log:
                visible = _visible(line)
                found += visible[max(0, offset - at) :]
                at += len(visible)
                if len(found) >= limit:
                    break
        return bytes(found[:limit])


def _visible(line: bytes) -> bytes:
    """What people see of a line: all but a message to the server, which may follow a progress bar on the same line.

    Of an unfinished line only what will stay is seen.
    """
    if line.endswith(b"\n"):
        message = _MESSAGE.search(line)
        if message is None:
            return line
        before = line[: message.start()]
        return before + b"\n" if before.strip() else b""
    begun = next((size for size in range(len(MARK), 0, -1) if line.endswith(MARK[:size])), 0)
    before = line.partition(MARK)[0] if MARK in line else line[: len(line) - begun]
    return before if before.strip() else b""


@lru_cache(maxsize=16)
def _marks(path: Path, _inode: int, _size: int, _changed: int) -> list[tuple[int, int]]:
    """Positions in a log, `MARK_EVERY` bytes apart, with the number of visible bytes before each.

    The list is cached while the log stays the same. A page reads dozens of parts to find the end, and reading a long
    log from the start each time kept the server busy.
    """
    marks, at, place = list(START), 0, 0
    with path.open("rb") as log:
        for line in log:
            if place - marks[-1][1] >= MARK_EVERY:
                marks.append((at, place))
            place += len(line)
            at += len(_visible(line))
    return marks
