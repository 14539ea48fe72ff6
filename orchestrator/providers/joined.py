"""Machines of one's own that have joined this server. They call it for orders, so they may be behind a router."""

from __future__ import annotations

import base64
import binascii
import shutil
import threading
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from orchestrator.ports.joining import JoinedMachine
from orchestrator.ports.providers import (
    Account,
    AccountSettings,
    Capabilities,
    Capacity,
    DriverEnv,
    Handle,
    LaunchRequest,
    Liveness,
    Observation,
    Provider,
    ProviderTexts,
    SessionOutput,
)
from orchestrator.providers.session_records import MAX_OUTBOX, SessionNotes, left_messages, part_of
from orchestrator.providers.worker_variables import worker_variables
from worker.shared.files import write_atomically
from worker.shared.joined_messages import (
    MAX_SLOTS,
    FilePiece,
    LogName,
    MachineOffer,
    MachineReadings,
    MachineReport,
    Orders,
    SessionReport,
    StartOrder,
)
from worker.shared.messages import Ticket
from worker.shared.session_process import LOG_NAME, cause, write_private

START_UP_S = 30.0
SILENT_S = 60.0
"""A machine calls more often than that. After it, nothing new is started there."""
PATIENCE_S = 2_700.0
MAX_LOG = 16 << 20
_FILES: dict[LogName, tuple[str, int]] = {"log": (LOG_NAME, MAX_LOG), "messages": ("outbox.jsonl", MAX_OUTBOX)}


class JoinedAccountSettings(AccountSettings):
    """Settings of one machine."""

    slots: Annotated[
        int, Field(ge=0, le=MAX_SLOTS, description="How many sessions may run at once (at most what it offers).")
    ] = MAX_SLOTS
    patience_s: Annotated[
        float,
        Field(
            ge=60, le=86_400, allow_inf_nan=False, description="Seconds of silence until its sessions count as lost."
        ),
    ] = PATIENCE_S
    same_folders: Annotated[
        bool, Field(description="`true`: it has the server's folders of base models at the same paths.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class JoinedRecord:
    """One session. `known` is set once the machine has reported it, `stop` and `forget` once it has to obey."""

    account: str = ""
    known: bool = False
    stop: bool = False
    forget: bool = False
    ended: bool = False
    detail: str = ""
    failed: bool = False


class JoinedProvider(Provider):
    """Implements `ports.Provider` and `SupportsJoining`.

    A launch leaves an order, which the machine gets when it calls. Until its report shows the session, the order is
    repeated. The folder of a session has its record, and its ticket until then. A machine that does not call is
    unknown, not dead: its sessions train on. After the setting `patience_s` they are judged by their own reports.
    """

    capabilities = Capabilities(provider="joined", shares_disk=False, local=True, free_of_charge=True)
    texts = ProviderTexts(
        title="Own machines",
        machines="Linux machines of your own, with or without a GPU. They call this server, so they may be behind a "
        "router.",
        connect="trainhop accounts code",
    )
    account_settings = JoinedAccountSettings

    def __init__(self, env: DriverEnv) -> None:
        self._env, self._folder, self._now = env, env.folder, env.clock.now
        self._lock, self._since = threading.RLock(), env.clock.now()
        self._machines: dict[str, JoinedMachine] = {}
        self._reported: dict[str, dict[str, SessionReport]] = {}
        self._waiting: defaultdict[str, dict[str, StartOrder]] = defaultdict(dict)
        self._open: defaultdict[str, set[str]] = defaultdict(set)
        self._new: set[str] = set()
        (self._folder / "machines").mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._folder.glob("*/session.json"):
            self._remember(path.parent.name)

    def _remember(self, lease: str) -> None:
        """Take up a session of an earlier process of this server."""
        record, order = self._of(lease).read(), self._home(lease) / "order.json"
        if record.ended:
            return
        self._open[record.account].add(lease)
        with suppress(OSError, ValidationError):
            if not (record.known or record.stop):
                self._waiting[record.account][lease] = StartOrder.model_validate_json(order.read_text())

    # --- machines ---

    def machine(self, account_id: str) -> JoinedMachine | None:
        """The last report. After a restart of the server, what the machine offered before, seen at time 0."""
        known = self._machines.get(account_id)
        if known is None:
            with suppress(OSError, ValidationError):
                offer = MachineOffer.model_validate_json(self._note(account_id).read_text())
                known = JoinedMachine(seen_at=0.0, offer=offer, readings=MachineReadings())
                self._machines.setdefault(account_id, known)
        return known

    def _note(self, account_id: str) -> Path:
        return self._folder / "machines" / f"{account_id}.json"

    def forget_machine(self, account_id: str) -> None:
        with self._lock:
            self._machines.pop(account_id, None)
            self._reported.pop(account_id, None)
            self._waiting.pop(account_id, None)
            self._note(account_id).unlink(missing_ok=True)
            for lease in list(self._open[account_id]):
                self._end(account_id, lease, "its machine has left")

    def _end(self, account_id: str, lease: str, detail: str, *, failed: bool = False) -> None:
        self._of(lease).write(ended=True, detail=detail, failed=failed)
        self._open[account_id].discard(lease)
        self._waiting[account_id].pop(lease, None)

    def capacity(self, account: Account) -> Capacity:
        wanted, known = JoinedAccountSettings.model_validate(account.config), self.machine(account.id)
        room = Capacity(slots=0, session_s=wanted.session_s, start_up_s=START_UP_S, any_folder=wanted.same_folders)
        if known is None:
            return replace(room, closed_reason="its machine has not called yet")
        offer = known.offer
        room = replace(room, memory_bytes=offer.memory_bytes, gpu=offer.gpu)
        if closed := offer.closed_reason or self._silence(account.id):
            return replace(room, closed_reason=closed)
        return replace(room, slots=min(wanted.slots, offer.slots))

    def _silence(self, account_id: str) -> str:
        """In words how long the machine has not called, or nothing."""
        known = self._machines.get(account_id)
        if known is None or known.seen_at == 0.0:
            return "its machine has not called since this server was started"
        quiet_s = self._now() - known.seen_at
        return f"its machine has not called for {quiet_s / 60:.0f} minutes" if quiet_s > SILENT_S else ""

    # --- calls of machines ---

    def exchange(self, account: Account, report: MachineReport) -> Orders:
        now = self._now()
        seen = JoinedMachine(
            seen_at=now,
            offer=report.offer,
            readings=report.readings,
            ahead_s=report.clock - now if report.clock else 0.0,
        )
        with self._lock:
            before = self._machines.get(account.id)
            is_news = before is None or before.seen_at == 0.0 or before.offer != report.offer
            if is_news:
                write_atomically(self._note(account.id), report.offer.model_dump_json())
            self._machines[account.id] = seen
            self._reported[account.id] = {session.lease: session for session in report.sessions}
            for session in report.sessions:
                is_news |= self._take(account.id, session)
            is_news |= self._compare(account.id)
            self._new.discard(account.id)
            answer = self._orders(account.id, self._sizes(report))
        if is_news:
            self._env.notify()
        return answer

    def _take(self, account_id: str, session: SessionReport) -> bool:
        """Note one session of a report. True if it has ended or is seen for the first time."""
        notes = self._of(session.lease)
        record = notes.read()
        if record.account != account_id:
            return False
        for piece in session.pieces:
            self._append(notes.folder, piece)
        is_news = not record.known
        if is_news:
            self._waiting[account_id].pop(session.lease, None)
            (notes.folder / "order.json").unlink(missing_ok=True)
            notes.write(known=True)
        if session.state == "ended" and not record.ended:
            failed = session.code is not None and session.code > 0
            self._end(account_id, session.lease, session.detail or cause(session.code), failed=failed)
            return True
        return is_news

    def _compare(self, account_id: str) -> bool:
        """End the sessions that the machine should have reported and did not."""
        is_news = False
        for lease in self._open[account_id] - self._reported[account_id].keys():
            record = self._of(lease).read()
            if record.known or record.stop:
                why = "its machine no longer knows this session" if record.known else "it was stopped before it started"
                self._end(account_id, lease, why)
                is_news = True
        return is_news

    def _append(self, folder: Path, piece: FilePiece) -> None:
        name, most = _FILES[piece.name]
        with suppress(OSError, binascii.Error), (folder / name).open("ab") as file:
            data = base64.b64decode(piece.data, validate=True)
            if file.tell() == piece.offset and piece.offset + len(data) <= most:
                file.write(data)

    def _sizes(self, report: MachineReport) -> dict[str, dict[LogName, int]]:
        return {
            session.lease: {kind: _size(self._home(session.lease) / name) for kind, (name, _) in _FILES.items()}
            for session in report.sessions
        }

    def has_orders(self, account_id: str) -> bool:
        return account_id in self._new

    def _orders(self, account_id: str, sizes: dict[str, dict[LogName, int]]) -> Orders:
        reported = self._reported[account_id]
        records = {lease: self._of(lease).read() for lease in reported}
        running = [lease for lease, session in reported.items() if session.state == "running"]
        return Orders(
            sizes=sizes,
            start=tuple(self._waiting[account_id].values()),
            stop=tuple(lease for lease in running if records[lease].stop),
            # A session without a record is of an earlier life of the machine, and its lease is over.
            forget=tuple(
                lease
                for lease, record in records.items()
                if lease not in running and (record.forget or record.account != account_id)
            ),
        )

    # --- sessions ---

    def launch(self, request: LaunchRequest) -> str:
        lease, notes = request.lease_id, self._of(request.lease_id)
        with self._lock:
            if notes.read().account:
                return lease
            ticket = Ticket(lease=lease, token=request.token, budget_s=request.budget_s, server_url=request.server_url)
            order = StartOrder(ticket=ticket, variables=worker_variables(self._env, request.account))
            notes.write(account=request.account.id)
            write_private(notes.folder / "order.json", order.model_dump_json())
            self._waiting[request.account.id][lease] = order
            self._open[request.account.id].add(lease)
            self._new.add(request.account.id)
        return lease

    def observe(self, handles: Sequence[Handle]) -> list[Observation]:
        with self._lock:
            return [self._observe(handle) for handle in handles]

    def _observe(self, handle: Handle) -> Observation:
        lease, notes = handle.lease_id, self._of(handle.lease_id)
        record, session = notes.read(), self._reported.get(handle.account.id, {}).get(lease)
        if not record.account and session is not None and session.state == "running":
            record = notes.write(account=handle.account.id, known=True)  # of a server that this one is a copy of
            self._open[handle.account.id].add(lease)
        if record.ended:
            return Observation(lease_id=lease, liveness=Liveness.ENDED, detail=record.detail, failed=record.failed)
        if silent := self._silence(handle.account.id):
            return Observation(lease_id=lease, liveness=self._patience(handle.account), detail=silent)
        if not record.account:
            return Observation(lease_id=lease, liveness=Liveness.ENDED, detail="its machine does not know this session")
        if session is None:
            return Observation(lease_id=lease, liveness=Liveness.UNKNOWN, detail="is starting")
        return Observation(lease_id=lease, liveness=Liveness.RUNNING, external_id=str(session.pid or lease))

    def _patience(self, account: Account) -> Liveness:
        known = self._machines.get(account.id)
        quiet_s = self._now() - max(self._since, known.seen_at if known is not None else 0.0)
        patience_s = JoinedAccountSettings.model_validate(account.config).patience_s
        return Liveness.UNKNOWN if quiet_s <= patience_s else Liveness.UNSEEN

    def stop(self, handle: Handle) -> None:
        with self._lock:
            record = self._of(handle.lease_id).read()
            if record.account and not (record.ended or record.stop):
                self._of(handle.lease_id).write(stop=True)
                self._waiting[record.account].pop(handle.lease_id, None)
                self._new.add(record.account)

    def collect_outputs(self, handle: Handle) -> SessionOutput:
        return SessionOutput(messages=left_messages(self._home(handle.lease_id) / _FILES["messages"][0]))

    def clean_up(self, handle: Handle) -> None:
        with self._lock:
            notes = self._of(handle.lease_id)
            if not notes.read().account:
                return
            record = notes.write(stop=True, forget=True)
            self._waiting[record.account].pop(handle.lease_id, None)
            self._new.add(record.account)
            for name in ("order.json", _FILES["messages"][0]):
                (notes.folder / name).unlink(missing_ok=True)

    def delete_log(self, handle: Handle) -> None:
        shutil.rmtree(self._home(handle.lease_id), ignore_errors=True)

    def log(self, handle: Handle, offset: int, limit: int) -> bytes | None:
        return part_of(self._home(handle.lease_id) / LOG_NAME, offset, limit)

    def _home(self, lease_id: str) -> Path:
        return self._folder / lease_id

    def _of(self, lease_id: str) -> SessionNotes[JoinedRecord]:
        return SessionNotes(self._home(lease_id), JoinedRecord)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
