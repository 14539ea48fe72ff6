"""The provider: notebooks that people start, and machines of accounts with the setting `mode: cli`."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.ports.providers import (
    Account,
    Capabilities,
    Capacity,
    CredentialsRefused,
    DriverEnv,
    Handle,
    LaunchRejected,
    LaunchRequest,
    Liveness,
    Observation,
    Provider,
    ProviderError,
    ProviderUnavailable,
    QuotaExhausted,
    SessionOutput,
)
from orchestrator.providers.colab.calls import Bridge, ColabError
from orchestrator.providers.colab.errors import NOTHING_TAKEN, SPENT, as_error
from orchestrator.providers.colab.records import RuntimeNotes, RuntimeRecord
from orchestrator.providers.colab.settings import MEMORY, SESSION_S, TEXTS, ColabAccountSettings, ColabSettings
from orchestrator.providers.colab.source import MARK, cell, pack, wheel
from orchestrator.providers.session_records import left_messages

FRESH_S, POLL_S, EMULATED_S = 30.0, 20.0, 1.0
"""How long Colab's replies are cached, and the interval at which a machine's log is read.

Every read starts a process.
"""
START_UP_S = 240.0
"""Time to get a machine, install the pinned libraries and load the model."""

BY_HAND = "open a notebook instead: trainhop notebook JOB"
OUT_OF_REACH = (
    "a Colab machine cannot reach this server, so its checkpoints need another store. Set TRAINHOP_PUBLIC_URL, "
    "or use a Google Drive (trainhop store use drive)"
)
TAKEN_AWAY = "Colab has taken the machine away"
LEASE_OVER = 3
"""Exit code of a worker that has lost its lease. It is not an error."""


def drives(account: Account) -> bool:
    """Whether this server starts machines for the account. Otherwise people open notebooks."""
    return account.config.get("mode") == "cli" and bool(account.credentials)


class ColabProvider(Provider):
    """Implements `ports.Provider`, `SupportsLogs`, `SupportsCheck` and `SupportsIdentity`.

    Its folder has notes and logs, but no secrets. A notebook is alive if it reports. A machine is alive while Colab
    lists it and a file on it says so. Results are cached for `fresh_s`. A log is read every `poll_s`. `worker` creates
    the worker's wheel. Machines of an emulator can read base models of this computer.
    """

    capabilities = Capabilities(provider="colab", shares_disk=False, same_network=False, personal=True, notebooks=True)
    texts = TEXTS
    settings = ColabSettings
    account_settings = ColabAccountSettings
    folder_name = "colab"

    def __init__(
        self,
        env: DriverEnv,
        *,
        fresh_s: float | None = None,
        poll_s: float | None = None,
        worker: Callable[[bool], bytes] = wheel,
    ) -> None:
        emulated = env.endpoint is not None
        self._worker = worker
        self.bridge = Bridge(env.read(ColabSettings).python, env.vault, env.folder, env.endpoint)
        self._env, self._folder, self._any_folder, self._now = env, env.folder, emulated, env.clock.now
        self._fresh_s = fresh_s if fresh_s is not None else EMULATED_S if emulated else FRESH_S
        self._poll_s = poll_s if poll_s is not None else EMULATED_S if emulated else POLL_S
        self._rooms: dict[str, tuple[float, Capacity | ProviderUnavailable]] = {}
        self._seen: dict[str, tuple[float, Observation]] = {}
        self._reading: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def _ask(self, account: Account, ask: str, **more: Any) -> dict[str, Any]:
        return self.bridge.ask(account, ask, **more)

    def _of(self, lease_id: str) -> RuntimeNotes:
        return RuntimeNotes(self._folder / lease_id)

    # --- capacity ---

    def capacity(self, account: Account) -> Capacity:
        closed_reason = Capacity(slots=0, session_s=float(account.config.get("session_s", SESSION_S)), start_up_s=120.0)
        if not drives(account):
            return replace(closed_reason, closed_reason=BY_HAND)
        if wrong := _wrong(account):
            return replace(closed_reason, closed_reason=wrong)
        if not self._env.can_deliver():
            return replace(closed_reason, closed_reason=OUT_OF_REACH)
        until, known = self._rooms.get(account.id + account.credentials, (0.0, None))
        if known is None or time.monotonic() > until:
            known = self._room(account, closed_reason)
            self._rooms[account.id + account.credentials] = (time.monotonic() + self._fresh_s, known)
        if isinstance(known, ProviderUnavailable):
            raise known
        return known

    def _room(self, account: Account, closed_reason: Capacity) -> Capacity | ProviderUnavailable:
        """A failure to reach Colab is cached for a while too.

        Otherwise its own jobs would wait for a time-out in every round.
        """
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
        except ColabError as refusal:
            raise as_error(refusal, _accelerator(account), self._now()) from None

    def check(self, account: Account) -> str:
        if not drives(account):
            return f"this server starts no sessions on this account; {BY_HAND}"
        if wrong := _wrong(account):
            raise CredentialsRefused(wrong)
        money = self._usage(account)
        words = (
            f"signed in at Colab: {money['balance']:.2f} compute units left, {money['hourly']:.2f} used per hour now "
            f"({money['machines']} machines)"
        )
        obstacle = SPENT if money["balance"] <= 0 else "" if self._env.can_deliver() else OUT_OF_REACH
        return f"{words}; {obstacle}" if obstacle else words

    def login(self, account: Account) -> str:
        """An identity made from the sign-in, because Colab's client returns no name.

        A second sign-in of one person looks like another person.
        """
        return self.bridge.sign_in(account)

    # --- launch ---

    def launch(self, request: LaunchRequest) -> str:
        account, notes = request.account, self._of(request.lease_id)
        if not drives(account):
            raise LaunchRejected(BY_HAND)
        record = notes.read()
        if record.machine:
            return record.machine
        self._refuse(request)
        accelerator = "none" if request.exports else _accelerator(account)
        notes.write(launched=True, accelerator=accelerator)
        bundle = notes.folder / "bundle.zip"
        handle = Handle(lease_id=request.lease_id, account=account, external_id=None)
        try:
            pack(request, bundle, self._worker)
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
        """The scheduler's error for a failed launch. A machine that may have been assigned is released first."""
        refusal = error if isinstance(error, ColabError) else None
        if refusal is None or refusal.kind not in NOTHING_TAKEN:
            self._release(handle, str(error))
        else:
            self._of(handle.lease_id).write(ended=True, released=True, detail=str(error))
        return as_error(refusal, _accelerator(handle.account), self._now()) if refusal is not None else error

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
            self._seen.update({lease: (time.monotonic(), observation) for lease, observation in fresh.items()})
        return [observation for observation in seen.values() if observation is not None]

    def _known(self, handle: Handle) -> Observation | None:
        """The state as far as it is known without a request to Colab."""
        lease, record = handle.lease_id, self._of(handle.lease_id).read()
        if not record.launched and handle.external_id is None:
            return Observation(lease_id=lease, liveness=Liveness.UNSEEN)  # this session is a notebook

        if record.ended:
            return Observation(lease_id=lease, liveness=Liveness.ENDED, detail=record.detail, failed=record.failed)
        if not handle.account.credentials:
            return Observation(lease_id=lease, liveness=Liveness.ENDED, detail="its Colab account was removed")
        at, known = self._seen.get(lease, (0.0, None))
        if known is not None and time.monotonic() < at + self._fresh_s:
            return known
        return None if _machine(handle, record) else self._cut_short(handle)

    def _cut_short(self, handle: Handle) -> Observation:
        """A launch that was interrupted by the end of the server. Its machine is released."""
        detail = "its launch was interrupted"
        try:
            self._release(handle, detail)
        except ProviderUnavailable as error:
            seen = Observation(lease_id=handle.lease_id, liveness=Liveness.UNKNOWN, detail=str(error))
            self._seen[handle.lease_id] = (time.monotonic(), seen)
            return seen
        return Observation(lease_id=handle.lease_id, liveness=Liveness.ENDED, detail=detail)

    def _look(self, handles: list[Handle]) -> dict[str, Observation]:
        """The sessions of one account, in one call."""
        sessions = [self._which(handle) for handle in handles]
        try:
            states = self._ask(handles[0].account, "look", sessions=sessions)
        except ProviderUnavailable as error:
            return {
                h.lease_id: Observation(lease_id=h.lease_id, liveness=Liveness.UNKNOWN, detail=str(error))
                for h in handles
            }
        return {h.lease_id: self._judge(h, states[_name(h.lease_id)]) for h in handles}

    def _judge(self, handle: Handle, state: Any) -> Observation:
        lease, notes = handle.lease_id, self._of(handle.lease_id)
        if state in ("runs", "silent"):
            machine = _machine(handle, notes.read())
            detail = "" if state == "runs" else "its Jupyter server does not answer"
            return Observation(lease_id=lease, liveness=Liveness.RUNNING, detail=detail, external_id=machine)
        if state == "gone":
            record = notes.write(launched=True, ended=True, complete=True, released=True, detail=TAKEN_AWAY)
        else:
            with contextlib.suppress(ProviderUnavailable):
                self._save(handle)  # the log says more about an error than the exit code

            record = notes.read()
            if not record.ended:
                record = notes.write(launched=True, ended=True, detail=_ending(state), failed=_has_failed(state))
        return Observation(lease_id=lease, liveness=Liveness.ENDED, detail=record.detail, failed=record.failed)

    def stop(self, handle: Handle) -> None:
        if self._is_over(handle):
            return
        with contextlib.suppress(ProviderUnavailable):
            self._save(handle)
        self._release(handle, "stopped by releasing its machine")

    def collect_outputs(self, handle: Handle) -> SessionOutput:
        if not self._is_over(handle):
            try:
                self._save(handle)
            except ProviderUnavailable:
                if self._of(handle.lease_id).read().ended:
                    raise
                # Not an error for a session that has not ended: it must be stopped even if its machine does not
                # respond, because the machine costs compute units.
        return SessionOutput(messages=left_messages(self._of(handle.lease_id).outbox))

    def clean_up(self, handle: Handle) -> None:
        """Release the machine, which uses compute units until then."""
        if not self._is_over(handle):
            with contextlib.suppress(ProviderUnavailable):
                self._save(handle)
            self._release(handle, self._of(handle.lease_id).read().detail)
        self._of(handle.lease_id).drop("outbox.jsonl")
        self._seen.pop(handle.lease_id, None)
        self._reading.pop(handle.lease_id, None)

    def _is_over(self, handle: Handle) -> bool:
        """Whether nothing of this session is left at Colab or can be reached there."""
        record = self._of(handle.lease_id).read()
        return record.released or not (record.launched or handle.external_id) or not handle.account.credentials

    def _release(self, handle: Handle, detail: str) -> None:
        try:
            self._ask(handle.account, "release", **self._which(handle))
        except ColabError as refusal:
            raise ProviderUnavailable(f"the machine could not be released yet: {refusal}") from None
        notes = self._of(handle.lease_id)
        notes.write(launched=True, ended=True, complete=True, released=True, detail=notes.read().detail or detail)
        self._seen.pop(handle.lease_id, None)
        self._rooms.pop(handle.account.id + handle.account.credentials, None)

    def _which(self, handle: Handle) -> dict[str, Any]:
        record = self._of(handle.lease_id).read()
        accelerator = record.accelerator or _accelerator(handle.account)
        return {
            "name": _name(handle.lease_id),
            "machine": _machine(handle, record) or None,
            "accelerator": accelerator.upper(),
        }

    # --- logs ---

    def follow(self, handle: Handle) -> Iterator[str]:
        notes, at, rest = self._of(handle.lease_id), 0, ""
        while True:
            record = notes.read()
            if not record.complete and not self._is_over(handle):
                record = self._save(handle)
            with contextlib.suppress(FileNotFoundError), notes.log.open("rb") as log:
                log.seek(at)
                data = log.read()
                at += len(data)
                *lines, rest = (rest + data.decode(errors="replace")).split("\n")
                yield from lines
            if record.complete or self._is_over(handle):
                return
            time.sleep(self._poll_s)

    def _save(self, handle: Handle) -> RuntimeRecord:
        """Store the new part of the log. Once the session has ended, store the complete log and the outbox."""
        notes = self._of(handle.lease_id)
        with self._reading[handle.lease_id]:
            record = notes.read()
            if record.complete:
                return record
            try:
                output = self._ask(
                    handle.account, "read", **self._which(handle), segment=record.segment, offset=record.offset
                )
            except ColabError as refusal:
                if refusal.kind != "gone":
                    raise
                return notes.write(launched=True, ended=True, complete=True, released=True, detail=TAKEN_AWAY)
            how = output["ended"]
            return notes.keep(output, _ending(how) if how else "", failed=how is not None and _has_failed(how))

    def delete_log(self, handle: Handle) -> None:
        self._of(handle.lease_id).erase()

    def log(self, handle: Handle, offset: int, limit: int) -> bytes | None:
        notes = self._of(handle.lease_id)
        return notes.shown(offset, limit) if notes.folder.is_dir() else None


def _name(lease_id: str) -> str:
    return f"trainhop-{lease_id}"


def _machine(handle: Handle, record: RuntimeRecord) -> str:
    return record.machine or handle.external_id or ""


def _accelerator(account: Account) -> str:
    return str(account.config.get("accelerator", "T4"))


def _wrong(account: Account) -> str:
    wanted = _accelerator(account)
    return "" if wanted in MEMORY else f"there is no Colab accelerator {wanted}. Choose one of {', '.join(MEMORY)}"


def _has_failed(ended: dict[str, Any]) -> bool:
    """Whether an error of the worker ended the session. A negative code means a signal."""
    return ended["code"] > 0 and ended["code"] != LEASE_OVER


def _ending(ended: dict[str, Any]) -> str:
    if ended["problem"]:
        return str(ended["problem"])
    return "" if ended["code"] in (0, LEASE_OVER) else f"the worker ended with exit code {ended['code']}"
