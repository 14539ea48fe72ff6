"""The agent: reports, carries out orders, and waits for the next ones. It only calls out."""

from __future__ import annotations

import fcntl
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import worker
from worker.joined import membership as places
from worker.joined import prepare, readings
from worker.joined.membership import MachineError, Membership
from worker.joined.server import Away, Left, Server
from worker.joined.sessions import Sessions
from worker.joined.worker_code import code_folder
from worker.shared import session_process
from worker.shared.joined_messages import JOIN_PROTOCOL, Gpu, MachineReport, Orders, StartOrder
from worker.shared.package_folder import FOLDER, search_path
from worker.shared.process import INSTANCE

REPORT_EVERY_S = 15.0
LOOK_EVERY_S = 0.25
MAX_PAUSE_S = 30.0
LEAVE_S = 120.0
"""How long the server may take to settle the last sessions."""
PREPARING = "it is installing the worker's packages"
LEAVING = {"leave": "it is leaving", "drain": "it was drained for a restart"}


@dataclass(kw_only=True)
class Agent:
    """One joined machine. `say` shows a line to a person. `measure` finds the GPUs for a version of torch.

    `checked` is what is known of the workers' Python already. `is_stopped` is set by a signal: the agent ends, and
    sessions continue.
    """

    membership: Membership
    folder: Path
    server: Server
    sessions: Sessions
    boot: str
    say: Callable[[str], None]
    measure: Callable[[str], list[tuple[str, Gpu]]] = readings.gpus
    checked: prepare.Prepared | None = None
    prepared: prepare.Prepared | None = None
    problem: str = PREPARING
    is_stopped: threading.Event = field(default_factory=threading.Event)
    _woken: threading.Event = field(default_factory=threading.Event)
    _waiting: threading.Thread | None = None
    _drained: set[str] = field(default_factory=set[str])

    # --- one exchange with the server ---

    def step(self) -> bool:
        """Report, and carry out the orders. True if the next report should follow at once. May raise `Away`."""
        self.sessions.look()
        leaving = places.asked_to(self.folder, self.boot)
        found = self.measure(self.prepared.torch) if self.prepared is not None else []
        closed = LEAVING.get(leaving, "") or self.problem
        orders = self.server.report(
            MachineReport(
                protocol=JOIN_PROTOCOL,
                offer=readings.offer(found, self.membership.shares, closed),
                readings=readings.readings(found, self.folder),
                sessions=tuple(self.sessions.reports()),
                clock=time.time(),
            )
        )
        has_arrived = self.sessions.take(orders)
        if leaving:
            self._ask_sessions_to_end()
        # Without progress the server cannot store what it gets, and is not called again at once.
        return self._carry_out(orders, found, closed) or (has_arrived and self.sessions.has_news())

    def _carry_out(self, orders: Orders, found: list[tuple[str, Gpu]], closed: str) -> bool:
        code = Path(worker.__file__).parents[1]
        if orders.start and not closed and orders.worker is not None:
            code = code_folder(self.server, self.folder, orders.worker, self.membership.python)
        for order in orders.start:
            self._start(order, found, closed, code)
        for lease in orders.stop:
            self.sessions.signal(lease)
        for lease in orders.forget:
            self.sessions.forget(lease)
        return bool(orders.start)

    def _start(self, order: StartOrder, found: list[tuple[str, Gpu]], closed: str, code: Path) -> None:
        ticket = order.ticket.model_copy(update={"server_url": self.server.address})
        slots = readings.offer(found, self.membership.shares).slots
        slot = self.sessions.free_slot(slots)
        if closed or slot >= slots:
            self.sessions.start(ticket, slot, {}, refusal=closed or "all slots of its machine are in use")
            return
        self.say(f"starting {ticket.lease}")
        self.sessions.start(ticket, slot, self._variables(order, found, slot, code))

    def _variables(self, order: StartOrder, found: list[tuple[str, Gpu]], slot: int, code: Path) -> Mapping[str, str]:
        assert self.prepared is not None
        ours = [code, *([Path(self.prepared.folder)] if self.prepared.folder else [])]
        variables = session_process.environment() | readings.variables(found, slot, self.membership.shares)
        variables |= {"PYTHONSAFEPATH": "1", INSTANCE: self.membership.instance} | dict(order.variables)
        if self.prepared.folder:
            variables |= {FOLDER: self.prepared.folder, "WORKER_MAY_INSTALL": "1"}
        return variables | {"PYTHONPATH": search_path(ours, variables.get("PYTHONPATH", ""))}

    def _ask_sessions_to_end(self) -> None:
        for lease in self.sessions.running().keys() - self._drained:
            self.say(f"{lease}: saving its last checkpoint")
            self.sessions.signal(lease, signal.SIGTERM)
            self._drained.add(lease)

    # --- its life ---

    def run(self) -> None:
        """Work until the machine has left, was drained, or `is_stopped` is set. Raises `MachineError`."""
        with _only_one(self.folder):
            if self.checked is not None and not self.checked.lacking:
                self._prepare()
            else:
                threading.Thread(target=self._prepare, daemon=True).start()
            try:
                self._serve()
            finally:
                self.server.close()

    def _serve(self) -> None:
        pause_s, is_away = 0.0, False
        while not self.is_stopped.is_set():
            try:
                again = self.step()
            except Away as error:
                if not is_away:
                    self.say(f"{error}. Sessions continue. Trying again.")
                is_away, pause_s = True, min(MAX_PAUSE_S, max(1.0, pause_s * 1.5))
                self.is_stopped.wait(pause_s)
                continue
            if is_away:
                self.say(f"{self.server.address} answers again.")
            is_away, pause_s = False, 0.0
            if self._has_left():
                return
            if not again:
                self._idle()

    def _has_left(self) -> bool:
        """Whether a person has asked this machine to leave or to drain, and nothing is left to do."""
        what = places.asked_to(self.folder, self.boot)
        if not what or self.sessions.running() or self.sessions.has_news():
            return False
        if what == "leave":
            self._leave()
        else:
            self.say("Drained. It is safe to restart this machine now.")
        return True

    def _leave(self) -> None:
        until = time.monotonic() + LEAVE_S
        while True:
            try:
                self.server.leave()
                break
            except Left:
                break
            except (MachineError, Away) as error:
                if time.monotonic() > until:
                    raise MachineError(f"{error} Run `trainhop leave` again later.") from None
                self.is_stopped.wait(0.5)
                with suppress(Away):
                    self.step()
        for lease in self.sessions.known():
            self.sessions.forget(lease)
        for name in (places.FILE, places.LEAVING):
            (self.folder / name).unlink(missing_ok=True)
        self.say(f"Left {self.server.address}.")

    def _prepare(self) -> None:
        """Find out what the workers' Python has, and install what it lacks. Nothing is offered until then."""
        try:
            found = self.checked or prepare.check(self.membership.python)
            if found.lacking:
                self.say(f"installing {', '.join(found.lacking)}")
                found = prepare.install(self.membership.python)
            self.prepared, self.problem = found, ""
        except MachineError as error:
            self.problem = str(error).rstrip(".")
            self.say(str(error))
        self._woken.set()

    def _idle(self) -> None:
        """Wait until there is something to report or to do."""
        if self._waiting is None or not self._waiting.is_alive():
            self._waiting = threading.Thread(target=self._await_orders, daemon=True)
            self._waiting.start()
        until, leaving = time.monotonic() + REPORT_EVERY_S, places.asked_to(self.folder, self.boot)
        while time.monotonic() < until and not self.is_stopped.is_set():
            if self._woken.wait(LOOK_EVERY_S) or self.sessions.look():
                break
            if places.asked_to(self.folder, self.boot) != leaving:
                break
        self._woken.clear()

    def _await_orders(self) -> None:
        with suppress(Away, MachineError):
            self.server.await_orders()
            self._woken.set()


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Keep other agents off this folder. Raises `MachineError` if one is at work."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / places.LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MachineError("This machine works for its server already.") from None
        yield


def make(folder: Path, say: Callable[[str], None], **changes: Any) -> Agent:
    """The agent of a folder. Raises `MachineError` if the machine has not joined a server."""
    found = places.read(folder)
    if found is None:
        raise MachineError("This machine has not joined a server. Create a code with `trainhop accounts code`.")
    boot = places.boot_id()

    def launch(home: Path, variables: Mapping[str, str]) -> Any:
        return session_process.start(home, variables, found.python)

    made = {"server": Server(found.server, found), "sessions": Sessions(folder / "sessions", boot, launch)}
    return Agent(**{"membership": found, "folder": folder, "boot": boot, "say": say, **made, **changes})
