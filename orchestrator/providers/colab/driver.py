"""The provider: notebooks, which only people start, and machines of accounts whose owner has chosen `mode: cli`."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.domain.model import Account
from orchestrator.ports.providers import (
    Capabilities,
    Capacity,
    CredentialsRefused,
    Handle,
    LaunchRejected,
    LaunchRequest,
    Leftovers,
    Liveness,
    Observation,
    ProviderError,
    ProviderUnavailable,
    QuotaExhausted,
)
from orchestrator.providers.colab.calls import SET_UP, Bridge, ColabSaid
from orchestrator.providers.colab.errors import NOTHING_TAKEN, SPENT, as_error
from orchestrator.providers.colab.records import Notes, Session
from orchestrator.providers.colab.source import MARK, cell, pack

SESSION_S = 11 * 3600.0
"""A runtime lasts 12 hours at most unless the plan says otherwise; nothing is promised."""
START_UP_S = 240.0
"""Taking a machine, installing the pinned libraries, loading the model."""
MEMORY = {
    "T4": 15_800_000_000,
    "L4": 23_600_000_000,
    "A100": 42_000_000_000,
    "H100": 84_000_000_000,
    "G4": 100_000_000_000,
    "none": 12 << 30,
}
"""Bytes that a session may plan with on each kind of machine. What it really gets, its worker reports."""

BY_HAND = "a notebook is opened by its owner: trainhop notebook JOB"
OUT_OF_REACH = (
    "a Colab machine cannot call this server, and its checkpoints need a place that it can write to: set TRAINHOP_PUBLIC_URL, "
    "or use a Google Drive (trainhop store use drive)"
)
TAKEN_AWAY = "Colab has taken the machine away"
LEASE_OVER = 3
"""Exit code of a worker whose lease had ended: no error of its own."""


def drives(account: Account) -> bool:
    """Whether machines are started there by this server; otherwise people open notebooks."""
    return account.config.get("mode") == "cli" and bool(account.credentials)


class ColabProvider:
    """Implements `ports.Provider`, `SupportsLogs`, `SupportsCheck` and `SupportsIdentity`. `folder` keeps notes and logs; nothing secret is written there.

    Of a notebook only its own reports tell that it lives. Of a machine, Colab's list of assignments and a file on it. What was
    seen is believed for `fresh_s`, a log is read every `poll_s`. `can_work` tells whether a machine could deliver what it makes;
    `any_folder` allows base models of this computer, which the emulator's machines see. Account settings: `mode` ("cli"),
    `accelerator` (see `MEMORY`), `slots`, `session_s`.
    """

    capabilities = Capabilities(provider="colab", shares_disk=False, same_network=False, personal=True)

    def __init__(
        self,
        bridge: Bridge | None = None,
        folder: Path = Path(),
        *,
        can_work: Callable[[], bool] = lambda: True,
        any_folder: bool = False,
        fresh_s: float = 30.0,
        poll_s: float = 20.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._bridge, self._folder, self._can_work, self._any_folder = bridge, folder, can_work, any_folder
        self._fresh_s, self._poll_s, self._now = fresh_s, poll_s, now
        self._rooms: dict[str, tuple[float, Capacity | ProviderUnavailable]] = {}
        self._seen: dict[str, tuple[float, Observation]] = {}
        self._reading: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def _ask(self, account: Account, ask: str, **more: Any) -> dict[str, Any]:
        if self._bridge is None:
            raise ProviderUnavailable(SET_UP)
        return self._bridge.ask(account, ask, **more)

    def _of(self, lease_id: str) -> Notes:
        return Notes(self._folder / lease_id)

    # --- room ---

    def room(self, account: Account) -> Capacity:
        closed_reason = Capacity(slots=0, session_s=float(account.config.get("session_s", SESSION_S)), start_up_s=120.0)
        if not drives(account):
            return replace(closed_reason, closed_reason=BY_HAND)
        if wrong := _wrong(account):
            return replace(closed_reason, closed_reason=wrong)
        if not self._can_work():
            return replace(closed_reason, closed_reason=OUT_OF_REACH)
        until, known = self._rooms.get(account.id + account.credentials, (0.0, None))
        if known is None or time.monotonic() > until:
            known = self._room(account, closed_reason)
            self._rooms[account.id + account.credentials] = (time.monotonic() + self._fresh_s, known)
        if isinstance(known, ProviderUnavailable):
            raise known
        return known

    def _room(self, account: Account, closed_reason: Capacity) -> Capacity | ProviderUnavailable:
        """Colab's silence is believed for a while too: its own jobs would wait for a time-out in every round."""
        try:
            if self._usage(account)["balance"] <= 0:
                return replace(closed_reason, closed_reason=SPENT)
        except CredentialsRefused:
            raise
        except ProviderUnavailable as error:
            return error
        card, slots = _accelerator(account), int(account.config.get("slots", 1))
        return replace(
            closed_reason,
            slots=slots,
            memory_bytes=MEMORY[card],
            gpu=card != "none",
            any_folder=self._any_folder,
            start_up_s=START_UP_S,
        )

    def _usage(self, account: Account) -> dict[str, Any]:
        try:
            return self._ask(account, "usage")
        except ColabSaid as said:
            raise as_error(said, _accelerator(account), self._now()) from None

    def check(self, account: Account) -> str:
        if not drives(account):
            return f"nothing is started there by this server: {BY_HAND}"
        if wrong := _wrong(account):
            raise CredentialsRefused(wrong)
        money = self._usage(account)
        words = (
            f"signed in at Colab: {money['balance']:.2f} compute units left, {money['hourly']:.2f} used per hour now "
            f"({money['machines']} machines)"
        )
        obstacle = SPENT if money["balance"] <= 0 else "" if self._can_work() else OUT_OF_REACH
        return f"{words}; {obstacle}" if obstacle else words

    def login(self, account: Account) -> str:
        """The sign-in itself: Colab's client is told no name, so that a second sign-in of one person seems another's."""
        return self._bridge.sign_in(account) if self._bridge is not None else ""

    # --- launch ---

    def launch(self, request: LaunchRequest) -> str:
        account, notes = request.account, self._of(request.lease_id)
        if not drives(account):
            raise LaunchRejected(BY_HAND)
        noted = notes.read()
        if noted.machine:
            return noted.machine
        self._refuse(request)
        accelerator = _accelerator(account)
        notes.write(launched=True, accelerator=accelerator)
        bundle = notes.folder / "bundle.zip"
        handle = Handle(lease_id=request.lease_id, account=account, external_id=None)
        try:
            pack(request, bundle)
            name = _name(request.lease_id)
            made = self._ask(account, "launch", **self._which(handle), bundle=str(bundle), code=cell(name), mark=MARK)
        except ProviderUnavailable as error:
            raise self._failed(handle, error) from None
        finally:
            notes.drop(bundle.name)
            self._rooms.pop(account.id + account.credentials, None)
        notes.write(machine=made["machine"])
        return made["machine"]

    def _refuse(self, request: LaunchRequest) -> None:
        given = request.assignment
        if given is None:
            return
        if not given.uploads:
            raise QuotaExhausted(OUT_OF_REACH)

    def _failed(self, handle: Handle, error: ProviderUnavailable) -> ProviderError:
        """What a failed launch is to the scheduler. A machine that may have been taken is given back before anything else."""
        said = error if isinstance(error, ColabSaid) else None
        if said is None or said.kind not in NOTHING_TAKEN:
            self._release(handle, str(error))
        else:
            self._of(handle.lease_id).write(ended=True, released=True, detail=str(error))
        return as_error(said, _accelerator(handle.account), self._now()) if said is not None else error

    # --- a session's life ---

    def observe(self, handles: Sequence[Handle]) -> list[Observation]:
        seen = {h.lease_id: self._known(h) for h in handles}
        unknown: defaultdict[str, list[Handle]] = defaultdict(list)
        for handle in handles:
            if seen[handle.lease_id] is None:
                unknown[handle.account.id].append(handle)
        for theirs in unknown.values():
            fresh = self._look(theirs)
            seen.update(fresh)
            self._seen.update({lease: (time.monotonic(), found) for lease, found in fresh.items()})
        return [found for found in seen.values() if found is not None]

    def _known(self, handle: Handle) -> Observation | None:
        """What can be said without asking Colab."""
        lease, noted = handle.lease_id, self._of(handle.lease_id).read()
        if not noted.launched and handle.external_id is None:
            return Observation(lease_id=lease, liveness=Liveness.UNSEEN)  # a notebook
        if noted.ended:
            return Observation(lease_id=lease, liveness=Liveness.ENDED, detail=noted.detail, failed=noted.failed)
        if not handle.account.credentials:
            return Observation(lease_id=lease, liveness=Liveness.ENDED, detail="its Colab account was removed")
        at, known = self._seen.get(lease, (0.0, None))
        if known is not None and time.monotonic() < at + self._fresh_s:
            return known
        return None if _machine(handle, noted) else self._cut_short(handle)

    def _cut_short(self, handle: Handle) -> Observation:
        """A server that ended in the middle of a launch: whatever it took is given back."""
        detail = "its launch was cut short"
        try:
            self._release(handle, detail)
        except ProviderUnavailable as error:
            seen = Observation(lease_id=handle.lease_id, liveness=Liveness.UNKNOWN, detail=str(error))
            self._seen[handle.lease_id] = (time.monotonic(), seen)
            return seen
        return Observation(lease_id=handle.lease_id, liveness=Liveness.ENDED, detail=detail)

    def _look(self, handles: list[Handle]) -> dict[str, Observation]:
        """Sessions of one account, in one call."""
        asked = [self._which(handle) for handle in handles]
        try:
            found = self._ask(handles[0].account, "look", sessions=asked)
        except ProviderUnavailable as error:
            return {
                h.lease_id: Observation(lease_id=h.lease_id, liveness=Liveness.UNKNOWN, detail=str(error))
                for h in handles
            }
        return {h.lease_id: self._judge(h, found[_name(h.lease_id)]) for h in handles}

    def _judge(self, handle: Handle, found: Any) -> Observation:
        lease, notes = handle.lease_id, self._of(handle.lease_id)
        if found in ("runs", "silent"):
            machine = _machine(handle, notes.read())
            detail = "" if found == "runs" else "its Jupyter server does not answer"
            return Observation(lease_id=lease, liveness=Liveness.RUNNING, detail=detail, external_id=machine)
        if found == "gone":
            noted = notes.write(launched=True, ended=True, complete=True, released=True, detail=TAKEN_AWAY)
        else:
            with contextlib.suppress(ProviderUnavailable):
                self._save(handle)  # its log tells more of an error than its exit code
            noted = notes.read()
            if not noted.ended:
                noted = notes.write(launched=True, ended=True, detail=_ending(found), failed=_has_failed(found))
        return Observation(lease_id=lease, liveness=Liveness.ENDED, detail=noted.detail, failed=noted.failed)

    def stop(self, handle: Handle) -> None:
        if self._is_over(handle):
            return
        with contextlib.suppress(ProviderUnavailable):
            self._save(handle)
        self._release(handle, "stopped by giving its machine back")

    def collect(self, handle: Handle) -> Leftovers:
        if not self._is_over(handle):
            try:
                self._save(handle)
            except ProviderUnavailable:
                if self._of(handle.lease_id).read().ended:
                    raise
                # What runs may have to be stopped all the same: a machine that does not answer costs compute units, too.
        outbox = self._of(handle.lease_id).outbox
        return Leftovers(messages=outbox.read_text(errors="replace").splitlines() if outbox.is_file() else ())

    def forget(self, handle: Handle) -> None:
        """Give the machine back. Compute units run until then."""
        if not self._is_over(handle):
            with contextlib.suppress(ProviderUnavailable):
                self._save(handle)
            self._release(handle, self._of(handle.lease_id).read().detail)
        self._of(handle.lease_id).drop("outbox.jsonl")
        self._seen.pop(handle.lease_id, None)
        self._reading.pop(handle.lease_id, None)

    def _is_over(self, handle: Handle) -> bool:
        """Whether nothing of this session can be left at Colab, or be reached there."""
        noted = self._of(handle.lease_id).read()
        return noted.released or not (noted.launched or handle.external_id) or not handle.account.credentials

    def _release(self, handle: Handle, detail: str) -> None:
        try:
            self._ask(handle.account, "release", **self._which(handle))
        except ColabSaid as said:
            raise ProviderUnavailable(f"the machine could not be given back yet: {said}") from None
        notes = self._of(handle.lease_id)
        notes.write(launched=True, ended=True, complete=True, released=True, detail=notes.read().detail or detail)
        self._seen.pop(handle.lease_id, None)
        self._rooms.pop(handle.account.id + handle.account.credentials, None)

    def _which(self, handle: Handle) -> dict[str, Any]:
        noted = self._of(handle.lease_id).read()
        accelerator = noted.accelerator or _accelerator(handle.account)
        return {
            "name": _name(handle.lease_id),
            "machine": _machine(handle, noted) or None,
            "accelerator": accelerator.upper(),
        }

    # --- its words ---

    def follow(self, handle: Handle) -> Iterator[str]:
        notes, at, rest = self._of(handle.lease_id), 0, ""
        while True:
            noted = notes.read()
            if not noted.complete and not self._is_over(handle):
                noted = self._save(handle)
            with contextlib.suppress(FileNotFoundError), notes.log.open("rb") as log:
                log.seek(at)
                data = log.read()
                at += len(data)
                *lines, rest = (rest + data.decode(errors="replace")).split("\n")
                yield from lines
            if noted.complete or self._is_over(handle):
                return
            time.sleep(self._poll_s)

    def _save(self, handle: Handle) -> Session:
        """Keep what is new of the log; once the session has ended, all of it and its outbox."""
        notes = self._of(handle.lease_id)
        with self._reading[handle.lease_id]:
            noted = notes.read()
            if noted.complete:
                return noted
            try:
                found = self._ask(
                    handle.account, "read", **self._which(handle), segment=noted.segment, offset=noted.offset
                )
            except ColabSaid as said:
                if said.kind != "gone":
                    raise
                return notes.write(launched=True, ended=True, complete=True, released=True, detail=TAKEN_AWAY)
            how = found["ended"]
            return notes.keep(found, _ending(how) if how else "", failed=how is not None and _has_failed(how))

    def erase(self, handle: Handle) -> None:
        self._of(handle.lease_id).erase()

    def log(self, handle: Handle, offset: int, limit: int) -> bytes | None:
        notes = self._of(handle.lease_id)
        return notes.shown(offset, limit) if notes.folder.is_dir() else None


def _name(lease_id: str) -> str:
    return f"trainhop-{lease_id}"


def _machine(handle: Handle, noted: Session) -> str:
    return noted.machine or handle.external_id or ""


def _accelerator(account: Account) -> str:
    return str(account.config.get("accelerator", "T4"))


def _wrong(account: Account) -> str:
    wanted = _accelerator(account)
    return "" if wanted in MEMORY else f"there is no Colab accelerator {wanted}: one of {', '.join(MEMORY)}"


def _has_failed(found: dict[str, Any]) -> bool:
    """Whether it ended by an error of its own; a negative code is a signal's."""
    return found["code"] > 0 and found["code"] != LEASE_OVER


def _ending(found: dict[str, Any]) -> str:
    if found["problem"]:
        return str(found["problem"])
    return "" if found["code"] in (0, LEASE_OVER) else f"the worker ended with exit code {found['code']}"
