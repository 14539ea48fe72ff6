"""What a driver keeps of each session in a folder of its own: a note that is written whole, and the session's log."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from bisect import bisect_right
from dataclasses import asdict, replace
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from worker.shared.messages import LINE_MARK

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S", bound="DataclassInstance")
MARK = f"{LINE_MARK} ".encode()
MARK_EVERY = 1 << 16
START = [(0, 0)]
WRITING = threading.RLock()


class SessionNotes(Generic[S]):
    """One session's folder: `session.json`, a dataclass `kind` whose every field has a default, and `output.log`."""

    def __init__(self, folder: Path, kind: type[S]) -> None:
        self.folder, self._kind = folder, kind
        self.log = folder / "output.log"

    def read(self) -> S:
        """What was noted; nothing for a session that was not launched from here."""
        try:
            return self._kind(**json.loads((self.folder / "session.json").read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return self._kind()

    def write(self, **changes: object) -> S:
        """Note something more, whole or not at all."""
        with WRITING:
            noted = replace(self.read(), **changes)  # pyright: ignore[reportArgumentType]
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            aside = self.folder / ".session.json"
            aside.write_text(json.dumps(asdict(noted)))
            aside.replace(self.folder / "session.json")
        return noted

    def erase(self) -> None:
        """Remove the note and the log."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def shown(self, offset: int, limit: int) -> bytes:
        """A part of the log as a person reads it: without the lines that are said to the server."""
        found = bytearray()
        with contextlib.suppress(FileNotFoundError), self.log.open("rb") as log:
            status = os.fstat(log.fileno())
            marks = (
                _marks(self.log, status.st_ino, status.st_size, status.st_mtime_ns) if offset > MARK_EVERY else START
            )
            at, place = marks[bisect_right(marks, offset, key=itemgetter(0)) - 1]
            log.seek(place)
            for line in log:
                if not _is_shown(line):
                    continue
                found += line[max(0, offset - at) :]
                at += len(line)
                if len(found) >= limit:
                    break
        return bytes(found[:limit])


def _is_shown(line: bytes) -> bool:
    return not (line.startswith(MARK) or (MARK.startswith(line[: len(MARK)]) and not line.endswith(b"\n")))


@lru_cache(maxsize=16)
def _marks(path: Path, _inode: int, _size: int, _changed: int) -> list[tuple[int, int]]:
    """Places in a log, `MARK_EVERY` bytes apart, each with how much is shown before it; kept for as long as it is the same.

    A page asks for dozens of parts to find the end: read from the start each time, a long log kept the server busy.
    """
    marks, at, place = list(START), 0, 0
    with path.open("rb") as log:
        for line in log:
            if place - marks[-1][1] >= MARK_EVERY:
                marks.append((at, place))
            place += len(line)
            at += len(line) if _is_shown(line) else 0
    return marks
