"""The provider: an account's capacity, and a session from its push to its deletion."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from orchestrator.ports.providers import (
    Account,
    Capabilities,
    Capacity,
    CredentialsRefused,
    DriverEnv,
    Handle,
    LaunchRequest,
    Liveness,
    Observation,
    Provider,
    ProviderError,
    ProviderUnavailable,
    SessionOutput,
)
from orchestrator.providers.kaggle import errors
from orchestrator.providers.kaggle.access import Access
from orchestrator.providers.kaggle.check_run import Diagnosing
from orchestrator.providers.kaggle.client import Connection
from orchestrator.providers.kaggle.diagnosis import EMULATED_LIMITS, Limits
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
from orchestrator.providers.kaggle.package_set import MAX_S, PackageSet, set_slug
from orchestrator.providers.kaggle.records import KernelNotes, KernelRecord, RecordStore
from orchestrator.providers.kaggle.settings import TEXTS, KaggleAccountSettings, KaggleSettings
from orchestrator.providers.kaggle.staging import Desk, Patience
from orchestrator.providers.kaggle.stopping import CANCELLED, SAVING_S, Wish, cancel, delete
from orchestrator.providers.kaggle.stream import lines, pieces
from orchestrator.providers.last_words import last_words

MARGIN_S = 900.0
"""Kaggle ends a session at its limit without warning. Storing its files takes minutes per gigabyte."""
GPU_SESSIONS, CPU_SESSIONS = 2, 5
T4_BYTES = int(14.56 * 2**30)
"""Memory of one of the two cards. Each process trains on its own card."""
RAM_BYTES = 29 << 30
START_UP_S = 300.0
"""Time to queue, load the image, install the pinned libraries and load the model."""
ENDED = {
    "COMPLETE": "",
    "ERROR": "the kernel ended with an error",
    "CANCEL_ACKNOWLEDGED": "Kaggle ended the session (time limit, or stopped by its owner)",
}
ABSENT = "its kernel was deleted at Kaggle"
UNSTARTED = "its kernel was not started at Kaggle"
ALIVE = frozenset({"QUEUED", "RUNNING", "CANCEL_REQUESTED", "NEW_SCRIPT"})
FRESH_S, EMULATED_FRESH_S = 10.0, 1.0
"""How long Kaggle's replies are cached. Dispatch and reconcile need them in every round."""
EMULATED_LISTED_S = 5.0
"""An emulator lists all files of a session when it ends, so a session without files needs a shorter wait."""


class KaggleProvider(Diagnosing, Provider):
    """Implements `ports.Provider`, `SupportsLogs`, `SupportsCheck`, `SupportsIdentity` and `SupportsDiagnosis`.

    Its folder has notes and logs, but no secrets. Kaggle's replies about an account or a session are cached for
    `fresh_s` seconds. `listed_s` is the maximum wait for the files of an ended session.
    """

    capabilities = Capabilities(
        provider="kaggle",
        shares_disk=False,
        same_network=False,
        personal=True,
        saving_s=TIMEOUT_OVER_S + SAVING_S,
        free_of_charge=True,
    )

    patience = Patience()

    texts = TEXTS
    settings = KaggleSettings
    account_settings = KaggleAccountSettings
    folder_name = "kaggle"

    def __init__(self, env: DriverEnv, *, fresh_s: float | None = None, listed_s: float | None = None) -> None:
        self._emulated, self._now = env.endpoint is not None, env.clock.now
        self._fresh_s = _chosen(fresh_s, EMULATED_FRESH_S if self._emulated else FRESH_S)
        self._listed_s = _chosen(listed_s, EMULATED_LISTED_S if self._emulated else UNSURE_S)
        self.limits = EMULATED_LIMITS if self._emulated else Limits()
        self._access = Access(env.vault, env.endpoint, self._fresh_s)
        self._notebook = RecordStore(env.folder)
        self._rooms: dict[str, tuple[float, Capacity]] = {}
        self._seen: dict[str, tuple[float, Observation]] = {}
        self._logged: dict[str, float] = {}

    # --- capacity ---

    def capacity(self, account: Account) -> Capacity:
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
            slots = max(0, slots - 1)  # the owner uses a session outside of this server

        return Capacity(
            slots=slots,
            session_s=session_s,
            memory_bytes=memory,
            gpu=gpu,
            any_folder=self._emulated,
            has_cpu=True,
            start_up_s=START_UP_S,
            # Kaggle counts from the machine's start until the files are stored. It would cut off a session that plans
            # with all remaining time.
            hours_left=max(0.0, quota.left_s - MARGIN_S) / 3600 if gpu else None,
            hours_total=quota.total_s / 3600 if gpu else None,
            refresh_at=quota.refresh_at if gpu else None,
        )

    def check(self, account: Account) -> str:
        """The owner and the GPU hours that are left. Kaggle tells nobody whether a phone number is verified."""
        words = f"signed in at Kaggle as {self._access.name(account)}"
        room = self._room(account)
        if room.closed_reason:
            return f"{words}; {room.closed_reason}"
        if room.hours_left is None or room.hours_total is None:
            return words
        return (
            f"{words}; {room.hours_left:.1f} of {room.hours_total:.1f} GPU hours left this week; whether the phone "
            "number is verified shows when the first machine starts"
        )

    def login(self, account: Account) -> str:
        """Kaggle ignores capitals in names."""
        return self._access.owner(account).lower()

    # --- launch ---

    def launch(self, request: LaunchRequest) -> str:
        connection = self._access.connect(request.account)
        slug = slug_of(request.lease_id)
        try:
            place = KernelPlace(connection=connection, owner=self._access.owner(request.account), slug=slug)
            record = self._note(request)
            if not record.pushed and not exists(place):
                self._start(place, request, record)
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

    def _start(self, place: KernelPlace, request: LaunchRequest, record: KernelRecord) -> None:
        notes, now = self._notebook.of_account(request.account.id), self._now()
        packages = PackageSet(place=replace(place, slug=set_slug()), notes=notes, now=now)
        staged = request.account.config.get("packages", "each" if self._emulated else "staged") == "staged"
        folder = self._notebook.of(request.lease_id).folder
        start(
            place,
            request,
            Desk(
                connection=place.connection,
                owner=place.owner,
                folder=folder,
                notes=notes,
                now=now,
                patience=self.patience,
            ),
            record,
            kernels=packages.found() if staged else (),
            about_to_push=lambda: self._may_appear(request.lease_id),
        )
        if staged:
            packages.prepare()

    def _prepares(self, account: Account) -> bool:
        """Whether a CPU session of the account prepares the packages."""
        return 0 < self._notebook.of_account(account.id).read().set_busy_until - self._now() <= MAX_S

    def _note(self, request: LaunchRequest) -> KernelRecord:
        given = request.assignment
        checkpoint = f"trainhop-resume-{plain(request.lease_id.removeprefix('lease-'))}"
        return self._notebook.write(
            request.lease_id,
            account=request.account.id,
            prefix=f"jobs/{request.job_id}/f{given.fence}/" if given else "",
            checkpoint=checkpoint if given and (given.resume or request.exports) else "",
        )

    def _note_trouble(self, request: LaunchRequest, error: ProviderError) -> None:
        """Store the error, so that a session that never appears is reported with it."""
        self._notebook.write(request.lease_id, account=request.account.id, trouble=f"it was not started: {error}")

    def _may_appear(self, lease_id: str) -> None:
        """Counted from the push, because staging the files may take longer than the wait for a push."""
        self._notebook.write(lease_id, unsure_until=self._now() + UNSURE_S)

    def _is_unsure(self, record: KernelRecord) -> bool:
        """Whether a push may still appear. If the clock was set back, that is long ago."""
        return 0 < record.unsure_until - self._now() <= UNSURE_S

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
        record = self._notebook.of(lease).read()
        if record.state:
            return Observation(lease_id=lease, liveness=Liveness.ENDED, detail=record.detail, failed=record.failed)
        if not handle.account.credentials:
            return Observation(lease_id=lease, liveness=Liveness.ENDED, detail="its Kaggle account was removed")
        at, known = self._seen.get(lease, (0.0, None))
        if known is None or time.monotonic() > at + self._fresh_s:
            with self._access.answering(handle.account):
                known = self._look(handle, record)
            self._seen[lease] = (time.monotonic(), known)
        return known

    def _look(self, handle: Handle, record: KernelRecord) -> Observation:
        lease, place = handle.lease_id, self._access.place(handle)
        external = f"{place.owner}/{place.slug}"
        try:
            state, failure = place.connection.state(place.owner, place.slug)
        except KaggleError as refusal:
            if not place.connection.absent(refusal, place.owner):
                raise
            if self._is_unsure(record):
                return Observation(lease_id=lease, liveness=Liveness.UNKNOWN, detail="may be starting")
            return self._ended(handle, "DELETED", record.trouble or (ABSENT if record.pushed else UNSTARTED))
        if state == "ERROR":
            return self._ended(handle, state, self._words(handle, place, failure))
        if state in ENDED:
            wished = record.stop_since and state == "CANCEL_ACKNOWLEDGED"
            return self._ended(handle, state, CANCELLED if wished else failure or ENDED[state])
        if record.account and not record.pushed:
            self._notebook.write(lease, pushed=True, trouble="")
        liveness = Liveness.RUNNING if state in ALIVE else Liveness.UNKNOWN
        detail = state.lower() if state in ALIVE else f"Kaggle reports the unknown state {state}"
        return Observation(lease_id=lease, liveness=liveness, detail=detail, external_id=external)

    def _words(self, handle: Handle, place: KernelPlace, failure: str) -> str:
        """The error of a session from the kernel's log and from Kaggle (`failure`)."""
        notes = self._notebook.of(handle.lease_id)
        with contextlib.suppress(ProviderUnavailable):
            save_log(place.connection, place.owner, place.slug, notes)
        said = [words for words in (place.connection.clean(last_words(notes.log)), failure) if words]
        return ": ".join([ENDED["ERROR"], *(["; ".join(said)] if said else [])])

    def _ended(self, handle: Handle, state: str, detail: str) -> Observation:
        """Store the end. It is final."""
        self._forget_room(handle.account)
        if self._notebook.of(handle.lease_id).read().account:
            self._notebook.write(handle.lease_id, state=state, detail=detail, ended_at=self._now())
        return Observation(lease_id=handle.lease_id, liveness=Liveness.ENDED, detail=detail, failed=state == "ERROR")

    def stop(self, handle: Handle) -> None:
        """Cancel the session. Later rounds find its end and its files. If it cannot be cancelled, delete its kernel."""
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

    def collect_outputs(self, handle: Handle) -> SessionOutput:
        notes = self._notebook.of(handle.lease_id)
        record = notes.read()
        if not record.collected and handle.account.credentials:
            place = self._access.place(handle)
            complete = gather(place.connection, place.owner, place.slug, notes)
            # If the clock was set back, the time since the end is unknown.
            fresh = record.ended_at <= self._now() < record.ended_at + self._listed_s
            if not complete and fresh and record.state in ENDED:
                raise ProviderUnavailable("Kaggle does not list the files of this session yet")
            if record.state:  # a running session may still write more
                self._notebook.write(handle.lease_id, collected=True)
        return kept(notes)

    def clean_up(self, handle: Handle) -> None:
        notes = self._notebook.of(handle.lease_id)
        record = notes.read()
        if handle.account.credentials and not record.forgotten:
            if not record.pushed and self._is_unsure(record):
                raise ProviderUnavailable("a kernel with an unanswered push may still appear at Kaggle")
            place = self._access.place(handle)
            with contextlib.suppress(ProviderUnavailable):
                save_log(place.connection, place.owner, place.slug, notes)
            remove(place, record)
        notes.clear()
        if record.account:
            self._notebook.write(handle.lease_id, forgotten=True)
        self._seen.pop(handle.lease_id, None)

    # --- logs ---

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
            if not place.connection.absent(refusal, place.owner) or exists(place):  # a queued session has no log yet
                raise
            yield from _kept_lines(notes)

    def delete_log(self, handle: Handle) -> None:
        self._notebook.of(handle.lease_id).erase()

    def log(self, handle: Handle, offset: int, limit: int) -> bytes | None:
        notes = self._notebook.of(handle.lease_id)
        record = notes.read()
        stale = time.monotonic() > self._logged.get(handle.lease_id, 0.0) + self._fresh_s
        if stale and record.is_live and handle.account.credentials:
            self._logged[handle.lease_id] = time.monotonic()
            with contextlib.suppress(ProviderUnavailable):
                place = self._access.place(handle)
                save_log(place.connection, place.owner, place.slug, notes)
        return notes.shown(offset, limit)

    def _forget_room(self, account: Account) -> None:
        self._rooms.pop(account.id + account.credentials, None)


def _chosen(given: float | None, usual: float) -> float:
    return usual if given is None else given


def _kept_lines(notes: KernelNotes) -> Iterator[str]:
    """The stored lines of a kernel that was deleted."""
    with contextlib.suppress(FileNotFoundError), notes.log.open(encoding="utf-8", errors="replace") as log:
        yield from (line.rstrip("\n") for line in log)
