"""The files of each session on this server: its record, its files from Kaggle, and its log."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.providers.kaggle.stream import Piece
from orchestrator.providers.session_records import WRITING, SessionNotes

MAX_LOG = 64 << 20
"""Maximum bytes that are kept of a kernel's output."""


@dataclass(frozen=True, kw_only=True)
class KernelRecord:
    """The record of a launch. `prefix` is the only folder of the store for the session's files.

    `state` and `detail` are Kaggle's final ones, once the run has ended at `ended_at`. Until `unsure_until` a push may
    still appear if its response was lost. `trouble` is the error of the push. `stop_since` is the time of the first
    stop request. `cancelled` is set once Kaggle has accepted to cancel the session.
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
        """Whether an error of the session ended it."""
        return self.state == "ERROR"

    @property
    def is_live(self) -> bool:
        """Whether it was started and is not known to have ended."""
        return self.pushed and not self.state and not self.forgotten


class KernelNotes(SessionNotes[KernelRecord]):
    """One session's folder: `session.json`, `output.log` and `files/`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, KernelRecord)
        self.files = folder / "files"

    def keep(self, found: Iterable[Piece]) -> Iterator[Piece]:
        """Pass on the pieces of a log that was read from its start, and store the new ones."""
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
        """Remove everything except the record and the log."""
        for entry in self.folder.iterdir() if self.folder.is_dir() else ():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name not in ("session.json", self.log.name):
                entry.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class Upkeep:
    """The record of an account. `uploads` has the time and Kaggle's token of each uploaded file (see `staging`).

    `spoiled` counts the names of a dataset that are not used any more. `late` are datasets that Kaggle did not process
    in time (see `staging`).

    The kernel `set_slug` prepares the packages. It was last started at `set_pushed_at`, may run until `set_busy_until`,
    and failed because of `set_trouble`. `old_sets` are deleted once it is complete (see `package_set`).
    """

    uploads: dict[str, tuple[float, str]] = field(default_factory=dict[str, tuple[float, str]])
    spoiled: dict[str, int] = field(default_factory=dict[str, int])
    late: list[str] = field(default_factory=list[str])
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
    """The records of all sessions and accounts, and the number of running sessions per account."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._live = {p.name: s.account for p in folder.iterdir() if (s := KernelNotes(p).read()).is_live}

    def of(self, lease_id: str) -> KernelNotes:
        """The folder of one session."""
        return KernelNotes(self._folder / lease_id)

    def of_account(self, account_id: str) -> AccountNotes:
        """The folder of one account."""
        return AccountNotes(self._folder / ".accounts" / account_id)

    def write(self, lease_id: str, **changes: object) -> KernelRecord:
        """Update fields of a session's record."""
        record = self.of(lease_id).write(**changes)
        if record.is_live:
            self._live[lease_id] = record.account
        else:
            self._live.pop(lease_id, None)
        return record

    def running(self, account: str) -> int:
        """The number of our running sessions on this account."""
        return sum(a == account for a in list(self._live.values()))
