"""The provider: what an account has room for, and the life of one session from push to delete."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.domain.model import Account
from orchestrator.ports.providers import (
    Capabilities,
    Capacity,
    CredentialsRefused,
    Handle,
    LaunchRequest,
    Leftovers,
    Liveness,
    Observation,
    ProviderError,
    ProviderUnavailable,
    Vault,
)
from orchestrator.providers.kaggle import errors
from orchestrator.providers.kaggle.access import Access
from orchestrator.providers.kaggle.check_run import Diagnosing
from orchestrator.providers.kaggle.client import Connection
from orchestrator.providers.kaggle.http import KaggleError
from orchestrator.providers.kaggle.launch import (
    MAX_SESSION_S,
    TIMEOUT_OVER_S,
    UNSURE_S,
    KernelPlace,
    exists,
    plain,
    remove,
    slug_of,
    start,
    wants_gpu,
)
from orchestrator.providers.kaggle.outputs import gather, kept, save_log
from orchestrator.providers.kaggle.package_set import PackageSet, set_slug
from orchestrator.providers.kaggle.records import Notes, RecordStore, Session
from orchestrator.providers.kaggle.staging import Desk
from orchestrator.providers.kaggle.stopping import CANCELLED, SAVING_S, Wish, cancel, delete
from orchestrator.providers.kaggle.stream import lines, pieces
from orchestrator.providers.last_words import last_words

MARGIN_S = 900.0
"""Kaggle ends a session at its limit without warning, and saving what it left takes minutes per gigabyte."""
GPU_SESSIONS, CPU_SESSIONS = 2, 5
T4_BYTES = int(14.56 * 2**30)
"""What one of the two cards offers to a process; every process trains with a card of its own."""
RAM_BYTES = 29 << 30
START_UP_S = 300.0
"""Queue, image, installing the pinned libraries, loading the model."""
ENDED = {
    "COMPLETE": "",
    "ERROR": "the kernel ended with an error",
    "CANCEL_ACKNOWLEDGED": "Kaggle ended the session (time limit, or stopped by its owner)",
}
ABSENT = "there is no such kernel at Kaggle (never started, or deleted)"
ALIVE = frozenset({"QUEUED", "RUNNING", "CANCEL_REQUESTED", "NEW_SCRIPT"})


class KaggleProvider(Diagnosing):
    """Implements `ports.Provider`, `SupportsLogs`, `SupportsCheck` and `SupportsIdentity`. `folder` keeps notes and logs; nothing secret is written there.

    `endpoint` (loopback) stands in for Kaggle's own host. What Kaggle said of an account or a session is believed for
    `fresh_s` seconds, and the files of an ended session are waited for `listed_s`. Account settings: `username`, `accelerator` ("none" for machines without GPU, which need no quota),
    `slots` (sessions at once, 2 at most, 5 without GPU), `session_s`, `packages` ("staged", so that a CPU kernel prepares them once
    and sessions start sooner, or "each", so that every session installs them).
    """

    capabilities = Capabilities(
        provider="kaggle", shares_disk=False, same_network=False, personal=True, saving_s=TIMEOUT_OVER_S + SAVING_S
    )

    def __init__(
        self,
        vault: Vault,
        folder: Path,
        endpoint: str | None = None,
        *,
        fresh_s: float = 10.0,
        listed_s: float = UNSURE_S,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._emulated, self._fresh_s, self._now = endpoint is not None, fresh_s, now
        self._access = Access(vault, endpoint, fresh_s)
        self._listed_s = listed_s
        self._notebook = RecordStore(folder)
        self._rooms: dict[str, tuple[float, Capacity]] = {}
        self._seen: dict[str, tuple[float, Observation]] = {}
        self._logged: dict[str, float] = {}

    # --- room ---

    def room(self, account: Account) -> Capacity:
        known = self._rooms.get(account.id + account.credentials)
        if known is not None and time.monotonic() < known[0]:
            return known[1]
        with self._access.answering(account):
            room = self._room(account)
        fresh_s = max(self._fresh_s, (room.open_at or 0.0) - self._now())
        self._rooms[account.id + account.credentials] = (time.monotonic() + fresh_s, room)
        return room

    def _room(self, account: Account) -> Capacity:
        gpu = wants_gpu(account)
        most = GPU_SESSIONS if gpu else CPU_SESSIONS - self._prepares(account)
        slots = min(most, max(0, int(account.config.get("slots", most))))
        session_s = min(float(account.config.get("session_s", MAX_SESSION_S)), MAX_SESSION_S - MARGIN_S)
        memory = T4_BYTES if gpu else RAM_BYTES
        try:
            quota = self._access.connect(account).quota()
        except KaggleError as refusal:
            if errors.signed_out(refusal):
                raise CredentialsRefused(errors.in_words(refusal)) from None
            open_at = self._now() + (refusal.retry_after or errors.PAUSE_S) if refusal.status == 429 else None
            return Capacity(slots=0, session_s=session_s, closed_reason=errors.in_words(refusal), open_at=open_at)
        if gpu and quota.reserved_s > 0 and self._notebook.running(account.id) == 0:
            slots = max(0, slots - 1)  # its owner uses a session by hand
        return Capacity(
            slots=slots,
            session_s=session_s,
            memory_bytes=memory,
            gpu=gpu,
            any_folder=self._emulated,
            start_up_s=START_UP_S,
            # Kaggle counts from the machine's start, and saving what it left: a budget of all that is left would be cut off.
            hours_left=max(0.0, quota.left_s - MARGIN_S) / 3600 if gpu else None,
            hours_total=quota.total_s / 3600 if gpu else None,
            refresh_at=quota.refresh_at if gpu else None,
        )

    def check(self, account: Account) -> str:
        return f"signed in at Kaggle as {self._access.name(account)}"

    def login(self, account: Account) -> str:
        """Kaggle tells nobody's name apart from another by its capitals."""
        return self._access.owner(account).lower()

    # --- launch ---

    def launch(self, request: LaunchRequest) -> str:
        connection = self._access.connect(request.account)
        slug = slug_of(request.lease_id)
        try:
            place = KernelPlace(connection=connection, owner=self._access.owner(request.account), slug=slug)
            noted = self._note(request)
            if not noted.pushed and not exists(place):
                self._start(place, request, noted)
        except KaggleError as refusal:
            error = errors.as_launch_error(refusal, now=self._now(), refresh_at=self._refresh_at(connection, refusal))
            self._note_trouble(request, error)
            raise error from None
        except ProviderUnavailable as error:
            self._note_trouble(request, error)
            raise
        self._notebook.write(request.lease_id, pushed=True, trouble="", unsure_until=self._now() + UNSURE_S)
        self._forget_room(request.account)
        return f"{place.owner}/{slug}"

    def _start(self, place: KernelPlace, request: LaunchRequest, noted: Session) -> None:
        notes, now = self._notebook.of_account(request.account.id), self._now()
        packages = PackageSet(place=replace(place, slug=set_slug()), notes=notes, now=now)
        staged = request.account.config.get("packages", "each" if self._emulated else "staged") == "staged"
        folder = self._notebook.of(request.lease_id).folder
        start(
            place,
            request,
            Desk(connection=place.connection, owner=place.owner, folder=folder, notes=notes, now=now),
            noted,
            kernels=packages.found() if staged else (),
            about_to_push=lambda: self._may_appear(request.lease_id),
        )
        if staged:
            packages.prepare()

    def _prepares(self, account: Account) -> bool:
        """Whether a CPU session of it prepares the packages."""
        return self._now() < self._notebook.of_account(account.id).read().set_busy_until

    def _note(self, request: LaunchRequest) -> Session:
        given = request.assignment
        checkpoint = f"trainhop-resume-{plain(request.lease_id.removeprefix('lease-'))}"
        return self._notebook.write(
            request.lease_id,
            account=request.account.id,
            prefix=f"jobs/{request.job_id}/f{given.fence}/" if given else "",
            checkpoint=checkpoint if given and given.resume else "",
        )

    def _note_trouble(self, request: LaunchRequest, error: ProviderError) -> None:
        """A session that never appears is told with these words, not as one that is not there."""
        self._notebook.write(request.lease_id, account=request.account.id, trouble=f"it was not started: {error}")

    def _may_appear(self, lease_id: str) -> None:
        """Counted from the push: bringing its files may have taken longer than a push is waited for."""
        self._notebook.write(lease_id, unsure_until=self._now() + UNSURE_S)

    def _refresh_at(self, connection: Connection, refusal: KaggleError) -> float | None:
        if not errors.used_up(refusal):
            return None
        with contextlib.suppress(ProviderUnavailable):
            return connection.quota().refresh_at
        return None

    # --- a session's life ---

    def observe(self, handles: Sequence[Handle]) -> list[Observation]:
        seen: list[Observation] = []
        for handle in handles:
            try:
                seen.append(self._observe(handle))
            except ProviderUnavailable as error:
                seen.append(Observation(lease_id=handle.lease_id, liveness=Liveness.UNKNOWN, detail=str(error)))
        return seen

    def _observe(self, handle: Handle) -> Observation:
        lease = handle.lease_id
        noted = self._notebook.of(lease).read()
        if noted.state:
            return Observation(lease_id=lease, liveness=Liveness.ENDED, detail=noted.detail, failed=noted.failed)
        if not handle.account.credentials:
            return Observation(lease_id=lease, liveness=Liveness.ENDED, detail="its Kaggle account was removed")
        at, known = self._seen.get(lease, (0.0, None))
        if known is None or time.monotonic() > at + self._fresh_s:
            with self._access.answering(handle.account):
                known = self._look(handle, noted)
            self._seen[lease] = (time.monotonic(), known)
        return known

    def _look(self, handle: Handle, noted: Session) -> Observation:
        lease, place = handle.lease_id, self._access.place(handle)
        external = f"{place.owner}/{place.slug}"
        try:
            state, failure = place.connection.state(place.owner, place.slug)
        except KaggleError as refusal:
            if not place.connection.absent(refusal, place.owner):
                raise
            if self._now() < noted.unsure_until:
                return Observation(lease_id=lease, liveness=Liveness.UNKNOWN, detail="may be about to start")
            return self._ended(handle, "DELETED", noted.trouble or ABSENT)
        if state == "ERROR":
            return self._ended(handle, state, self._words(handle, place, failure))
        if state in ENDED:
            wished = noted.stop_since and state == "CANCEL_ACKNOWLEDGED"
            return self._ended(handle, state, CANCELLED if wished else failure or ENDED[state])
        if noted.account and not noted.pushed:
            self._notebook.write(lease, pushed=True, trouble="")
        liveness = Liveness.RUNNING if state in ALIVE else Liveness.UNKNOWN
        detail = state.lower() if state in ALIVE else f"Kaggle says {state}, which this version does not know"
        return Observation(lease_id=lease, liveness=liveness, detail=detail, external_id=external)

    def _words(self, handle: Handle, place: KernelPlace, failure: str) -> str:
        """What a kernel's log and Kaggle itself (`failure`) say of its error."""
        notes = self._notebook.of(handle.lease_id)
        with contextlib.suppress(ProviderUnavailable):
            save_log(place.connection, place.owner, place.slug, notes)
        said = [words for words in (place.connection.clean(last_words(notes.log)), failure) if words]
        return ": ".join([ENDED["ERROR"], *(["; ".join(said)] if said else [])])

    def _ended(self, handle: Handle, state: str, detail: str) -> Observation:
        """Note an end, which nothing takes back."""
        self._forget_room(handle.account)
        if self._notebook.of(handle.lease_id).read().account:
            self._notebook.write(handle.lease_id, state=state, detail=detail, ended_at=self._now())
        return Observation(lease_id=handle.lease_id, liveness=Liveness.ENDED, detail=detail, failed=state == "ERROR")

    def stop(self, handle: Handle) -> None:
        """Cancel the session, whose end and files later rounds find; delete its kernel where it cannot be cancelled."""
        lease = handle.lease_id
        self._seen.pop(lease, None)
        seen = self._observe(handle)
        if seen.liveness is Liveness.ENDED:
            return
        place, notes = self._access.place(handle), self._notebook.of(lease)
        wish = Wish(place=place, notes=notes, state=seen.detail, now=self._now())
        if not (why := cancel(wish)) or self._look(handle, notes.read()).liveness is Liveness.ENDED:
            return
        detail = delete(wish, why, alone=self._notebook.running(handle.account.id) <= 1)
        self._seen.pop(lease, None)
        self._notebook.write(lease, account=handle.account.id, collected=True)
        self._ended(handle, "DELETED", detail)

    def collect(self, handle: Handle) -> Leftovers:
        notes = self._notebook.of(handle.lease_id)
        noted = notes.read()
        if not noted.collected and handle.account.credentials:
            place = self._access.place(handle)
            complete = gather(place.connection, place.owner, place.slug, notes)
            # A clock that was set back since the end says nothing of how long it is ago.
            fresh = noted.ended_at <= self._now() < noted.ended_at + self._listed_s
            if not complete and fresh and noted.state in ENDED:
                raise ProviderUnavailable("Kaggle does not list the files of this session yet")
            if noted.state:  # a session that runs may still leave more
                self._notebook.write(handle.lease_id, collected=True)
        return kept(notes)

    def forget(self, handle: Handle) -> None:
        notes = self._notebook.of(handle.lease_id)
        noted = notes.read()
        if handle.account.credentials and not noted.forgotten:
            if not noted.pushed and self._now() < noted.unsure_until:
                raise ProviderUnavailable("a kernel whose push was not answered may still appear at Kaggle")
            place = self._access.place(handle)
            with contextlib.suppress(ProviderUnavailable):
                save_log(place.connection, place.owner, place.slug, notes)
            remove(place, noted)
        notes.clear()
        if noted.account:
            self._notebook.write(handle.lease_id, forgotten=True)
        self._seen.pop(handle.lease_id, None)

    # --- its words ---

    def follow(self, handle: Handle) -> Iterator[str]:
        notes = self._notebook.of(handle.lease_id)
        if not handle.account.credentials or notes.read().state == "DELETED":
            yield from _kept_lines(notes)
            return
        place = self._access.place(handle)
        try:
            with place.connection.log(place.owner, place.slug) as answer:
                for line in lines(notes.keep(pieces(answer))):
                    self._logged[handle.lease_id] = time.monotonic()
                    yield line
        except KaggleError as refusal:
            if not place.connection.absent(refusal, place.owner) or exists(
                place
            ):  # a session that waits has no log yet
                raise
            yield from _kept_lines(notes)

    def erase(self, handle: Handle) -> None:
        self._notebook.of(handle.lease_id).erase()

    def log(self, handle: Handle, offset: int, limit: int) -> bytes | None:
        notes = self._notebook.of(handle.lease_id)
        noted = notes.read()
        stale = time.monotonic() > self._logged.get(handle.lease_id, 0.0) + self._fresh_s
        if stale and noted.is_live and handle.account.credentials:
            self._logged[handle.lease_id] = time.monotonic()
            with contextlib.suppress(ProviderUnavailable):
                place = self._access.place(handle)
                save_log(place.connection, place.owner, place.slug, notes)
        return notes.shown(offset, limit)

    def _forget_room(self, account: Account) -> None:
        self._rooms.pop(account.id + account.credentials, None)


def _kept_lines(notes: Notes) -> Iterator[str]:
    """What was kept of the words of a kernel that is gone."""
    with contextlib.suppress(FileNotFoundError), notes.log.open(encoding="utf-8", errors="replace") as log:
        yield from (line.rstrip("\n") for line in log)
