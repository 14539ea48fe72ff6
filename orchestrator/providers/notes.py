"""What a driver keeps of each session in a folder of its own: a note that is written whole, and the session's log."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from worker.protocol import LINE_MARK

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S", bound="DataclassInstance")
MARK = f"{LINE_MARK} ".encode()
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
        found, at = bytearray(), 0
        with contextlib.suppress(FileNotFoundError), self.log.open("rb") as log:
            for line in log:
                if line.startswith(MARK) or (MARK.startswith(line[: len(MARK)]) and not line.endswith(b"\n")):
                    continue
                found += line[max(0, offset - at) :]
                at += len(line)
                if len(found) >= limit:
                    break
        return bytes(found[:limit])
