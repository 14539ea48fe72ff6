"""What this server keeps of each session in a folder of its own: where it runs, what it left, and its log."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from orchestrator.providers.kaggle.stream import Piece
from worker.protocol import LINE_MARK

MARK = f"{LINE_MARK} ".encode()
LONGEST_LOG = 64 << 20
"""Bytes kept of what a kernel prints."""
_WRITING = threading.RLock()


@dataclass(frozen=True, kw_only=True)
class Session:
    """A launch as it was noted. `prefix` is the only folder of the store that its files may go to.

    `state` and `detail` are Kaggle's last word once the run has ended, at `ended_at`; until `unsure_until` a push whose answer
    was lost may still appear.
    """

    account: str = ""
    prefix: str = ""
    checkpoint: str = ""
    pushed: bool = False
    unsure_until: float = 0.0
    state: str = ""
    detail: str = ""
    ended_at: float = 0.0
    collected: bool = False
    forgotten: bool = False

    @property
    def is_live(self) -> bool:
        """Started, and not known to have ended."""
        return self.pushed and not self.state and not self.forgotten


class Notes:
    """One session's folder: `session.json`, `output.log` and `files/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "output.log"
        self.files = folder / "files"

    def read(self) -> Session:
        """What was noted; nothing for a session that is not known here."""
        try:
            return Session(**json.loads((self.folder / "session.json").read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return Session()

    def write(self, **changes: object) -> Session:
        """Note something more, whole or not at all."""
        with _WRITING:
            noted = replace(self.read(), **changes)  # pyright: ignore[reportArgumentType]
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            aside = self.folder / ".session.json"
            aside.write_text(json.dumps(asdict(noted)))
            aside.replace(self.folder / "session.json")
        return noted

    def keep(self, found: Iterable[Piece]) -> Iterator[Piece]:
        """Pass a log on that was read from its beginning, and keep what is new of it."""
        at = 0
        for piece in found:
            at = self._append(at, piece.text.encode())
            yield piece

    def _append(self, at: int, data: bytes) -> int:
        with _WRITING:
            have = self.log.stat().st_size if self.log.is_file() else 0
            if at <= have < at + len(data) and have < LONGEST_LOG:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                with self.log.open("ab") as file:
                    file.write(data[have - at :])
        return at + len(data)

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

    def clear(self) -> None:
        """Remove everything but the note and the log."""
        for entry in self.folder.iterdir() if self.folder.is_dir() else ():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name not in ("session.json", self.log.name):
                entry.unlink(missing_ok=True)


class Notebook:
    """The notes of all sessions, and how many of them run per account."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._live = {p.name: s.account for p in folder.iterdir() if (s := Notes(p).read()).is_live}

    def of(self, lease_id: str) -> Notes:
        """The folder of one session."""
        return Notes(self._folder / lease_id)

    def write(self, lease_id: str, **changes: object) -> Session:
        """Note something of a session."""
        noted = self.of(lease_id).write(**changes)
        if noted.is_live:
            self._live[lease_id] = noted.account
        else:
            self._live.pop(lease_id, None)
        return noted

    def running(self, account: str) -> int:
        """Sessions of ours that run on this account."""
        return sum(a == account for a in list(self._live.values()))
