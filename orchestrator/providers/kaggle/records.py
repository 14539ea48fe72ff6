"""What this server keeps of each session in a folder of its own: where it runs, what it left, and its log."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.providers.kaggle.stream import Piece
from orchestrator.providers.session_records import WRITING, SessionNotes

MAX_LOG = 64 << 20
"""Bytes kept of what a kernel prints."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """A launch as it was noted. `prefix` is the only folder of the store that its files may go to.

    `state` and `detail` are Kaggle's last word once the run has ended, at `ended_at`; until `unsure_until` a push whose answer
    was lost may still appear; `trouble` is what went wrong with it. Its end was first wished at `stop_since`, and Kaggle has accepted to cancel it where `cancelled`.
    """

    account: str = ""
    prefix: str = ""
    checkpoint: str = ""
    pushed: bool = False
    unsure_until: float = 0.0
    trouble: str = ""
    stop_since: float = 0.0
    cancelled: bool = False
    state: str = ""
    detail: str = ""
    ended_at: float = 0.0
    collected: bool = False
    forgotten: bool = False

    @property
    def failed(self) -> bool:
        """It has ended with an error of its own."""
        return self.state == "ERROR"

    @property
    def is_live(self) -> bool:
        """Started, and not known to have ended."""
        return self.pushed and not self.state and not self.forgotten


class Notes(SessionNotes[Session]):
    """One session's folder: `session.json`, `output.log` and `files/`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, Session)
        self.files = folder / "files"

    def keep(self, found: Iterable[Piece]) -> Iterator[Piece]:
        """Pass a log on that was read from its beginning, and keep what is new of it."""
        at = 0
        for piece in found:
            at = self._append(at, piece.text.encode())
            yield piece

    def _append(self, at: int, data: bytes) -> int:
        with WRITING:
            have = self.log.stat().st_size if self.log.is_file() else 0
            if at <= have < at + len(data) and have < MAX_LOG:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                with self.log.open("ab") as file:
                    file.write(data[have - at :])
        return at + len(data)

    def clear(self) -> None:
        """Remove everything but the note and the log."""
        for entry in self.folder.iterdir() if self.folder.is_dir() else ():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name not in ("session.json", self.log.name):
                entry.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class Upkeep:
    """What is kept of an account: `uploads` by file, each the time and the token that Kaggle gave for it (see `staging`).

    The kernel `set_slug` was last started at `set_pushed_at` to prepare the packages; it may run until `set_busy_until`, and
    failed for `set_trouble`. `old_sets` are to be deleted once it is complete (see `package_set`).
    """

    uploads: dict[str, tuple[float, str]] = field(default_factory=dict[str, tuple[float, str]])
    set_slug: str = ""
    set_pushed_at: float = 0.0
    set_busy_until: float = 0.0
    set_trouble: str = ""
    old_sets: list[str] = field(default_factory=list[str])


class AccountNotes(SessionNotes[Upkeep]):
    """The folder of one account."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, Upkeep)


class RecordStore:
    """The notes of all sessions and accounts, and how many sessions run per account."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._live = {p.name: s.account for p in folder.iterdir() if (s := Notes(p).read()).is_live}

    def of(self, lease_id: str) -> Notes:
        """The folder of one session."""
        return Notes(self._folder / lease_id)

    def of_account(self, account_id: str) -> AccountNotes:
        """The folder of one account."""
        return AccountNotes(self._folder / ".accounts" / account_id)

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
