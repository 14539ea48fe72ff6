"""Sessions on a joined machine: processes of their own, whose folders tell the next agent what runs here."""

from __future__ import annotations

import base64
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from worker.shared import session_process
from worker.shared.files import write_atomically
from worker.shared.joined_messages import MAX_SESSIONS, PIECE_BYTES, FilePiece, LogName, Orders, SessionReport
from worker.shared.messages import Ticket

START_UP_S = 20.0
"""Time from a process's start to its note of its own id."""
MAX_LOG = 16 << 20
MAX_MESSAGES = 60 << 20
PIECES_PER_REPORT = 3
FILES: dict[LogName, tuple[str, int]] = {
    "log": (session_process.LOG_NAME, MAX_LOG),
    "messages": ("outbox.jsonl", MAX_MESSAGES),
}
Launch = Callable[[Path, Mapping[str, str]], "subprocess.Popen[bytes]"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One session. `boot` is the start of the machine that it began after. `code` is None if it is not known."""

    slot: int
    boot: str
    began: float
    ended: bool = False
    code: int | None = None
    detail: str = ""


class Sessions:
    """The folders of this machine's sessions. A record is written before its process is started.

    So an agent that was killed in between finds a session without a process, and never a process without a session.
    """

    def __init__(self, folder: Path, boot: str, launch: Launch, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._boot, self._launch, self._clock = folder, boot, launch, clock
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._sizes: dict[str, dict[LogName, int]] = {}
        self._told: set[str] = set()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def known(self) -> dict[str, Record]:
        """Every session of this machine that the server has not settled yet."""
        found = {home.name: self._read(home.name) for home in sorted(self._folder.iterdir()) if home.is_dir()}
        return {lease: record for lease, record in found.items() if record is not None}

    def running(self) -> dict[str, Record]:
        """Those that have not ended, as far as `look` has seen."""
        return {lease: record for lease, record in self.known().items() if not record.ended}

    def start(self, ticket: Ticket, slot: int, variables: Mapping[str, str], refusal: str = "") -> None:
        """Start a session. The same ticket again changes nothing. With `refusal` it ends before it begins."""
        home = self._folder / ticket.lease
        if self._read(ticket.lease) is not None:
            return
        home.mkdir(mode=0o700, exist_ok=True)
        record = Record(slot=slot, boot=self._boot, began=self._clock(), ended=bool(refusal), detail=refusal)
        self._write(ticket.lease, record)
        if refusal:
            return
        session_process.write_private(home / "ticket.json", ticket.model_dump_json())
        try:
            self._children[ticket.lease] = self._launch(home, variables)
        except OSError as error:
            words = f"the worker process could not be started: {error.strerror or error}"
            self._write(ticket.lease, replace(record, ended=True, code=1, detail=words))

    def look(self) -> bool:
        """Note which sessions have ended. True if one has."""
        ended = [lease for lease, record in self.running().items() if self._has_ended(lease, record)]
        return bool(ended)

    def _has_ended(self, lease: str, record: Record) -> bool:
        home, child = self._folder / lease, self._children.get(lease)
        code = child.poll() if child is not None else None
        if (child is not None and code is None) or (child is None and self._runs(home, record)):
            return False
        restarted = record.boot != self._boot
        detail = "its machine was restarted" if restarted else session_process.cause(code)
        if code is not None and code > 0:
            detail += session_process.last_words(home / session_process.LOG_NAME)
        self._write(lease, replace(record, ended=True, code=code, detail=detail or "the process ended"))
        return True

    def _runs(self, home: Path, record: Record) -> bool:
        """Whether the process of an earlier agent's session runs, or may still be starting."""
        if record.boot != self._boot:
            return False
        if (home / "pid.json").exists():
            return session_process.noted_process(home) is not None
        return abs(self._clock() - record.began) < START_UP_S  # the clock may have been set back

    def signal(self, lease: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a session's process."""
        child = self._children.get(lease)
        pid = (
            child.pid
            if child is not None and child.poll() is None
            else session_process.noted_process(self._home(lease))
        )
        if pid is not None:
            session_process.end(pid, number)

    def forget(self, lease: str) -> None:
        """Delete a session that has ended, with all its files."""
        record = self._read(lease)
        if record is not None and record.ended:
            self._children.pop(lease, None)
            self._sizes.pop(lease, None)
            shutil.rmtree(self._home(lease), ignore_errors=True)

    def free_slot(self, slots: int) -> int:
        """The first slot that no session uses."""
        used = {record.slot for record in self.running().values()}
        return next((slot for slot in range(slots) if slot not in used), slots)

    # --- reports ---

    def take(self, orders: Orders) -> bool:
        """Note how much of each file the server has. True if that has changed."""
        before, self._sizes = self._sizes, {lease: dict(sizes) for lease, sizes in orders.sizes.items()}
        return before != self._sizes

    def reports(self) -> list[SessionReport]:
        """The sessions for the next report, with the next pieces of their files."""
        budget, found = PIECES_PER_REPORT, list[SessionReport]()
        self._told.clear()
        for lease, record in list(self.known().items())[:MAX_SESSIONS]:
            pieces = [piece for name in FILES if (piece := self._piece(lease, name, record)) is not None][:budget]
            budget -= len(pieces)
            is_over = record.ended and not self._lags(lease, record)
            self._told |= {lease} if is_over else set()
            found.append(
                SessionReport(
                    lease=lease,
                    state="ended" if is_over else "running",
                    pid=session_process.noted_process(self._home(lease)) or 0,
                    code=record.code,
                    detail=record.detail,
                    pieces=tuple(pieces),
                )
            )
        return found

    def has_news(self) -> bool:
        """Whether the last report did not say yet that a session has ended."""
        return any(record.ended and lease not in self._told for lease, record in self.known().items())

    def _lags(self, lease: str, record: Record) -> bool:
        return any(self._left(lease, name, record) > 0 for name in FILES)

    def _left(self, lease: str, name: LogName, record: Record) -> int:
        """Bytes of a file that the server lacks. Messages are sent once the session has ended."""
        if name == "messages" and not record.ended:
            return 0
        file, most = FILES[name]
        with suppress(FileNotFoundError):
            return min(most, (self._home(lease) / file).stat().st_size) - self._sizes.get(lease, {}).get(name, 0)
        return 0

    def _piece(self, lease: str, name: LogName, record: Record) -> FilePiece | None:
        left = self._left(lease, name, record)
        if left <= 0 or lease not in self._sizes:  # the server's first answer tells where to begin
            return None
        at = self._sizes[lease].get(name, 0)
        with (self._home(lease) / FILES[name][0]).open("rb") as file:
            file.seek(at)
            data = file.read(min(left, PIECE_BYTES))
        return FilePiece(name=name, offset=at, data=base64.b64encode(data).decode())

    # --- records ---

    def _home(self, lease: str) -> Path:
        return self._folder / lease

    def _read(self, lease: str) -> Record | None:
        with suppress(OSError, ValueError, TypeError):
            return Record(**json.loads((self._home(lease) / "record.json").read_text()))
        return None

    def _write(self, lease: str, record: Record) -> None:
        write_atomically(self._home(lease) / "record.json", json.dumps(asdict(record)))
