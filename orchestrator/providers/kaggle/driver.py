"""The provider: what an account has room for, and the life of one session from push to delete."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.domain.model import Account
from orchestrator.ports import (
    Capabilities,
    Handle,
    LaunchRejected,
    LaunchRequest,
    Leftovers,
    Liveness,
    Observation,
    ProviderUnavailable,
    Room,
    Vault,
    VaultError,
)
from orchestrator.providers.kaggle import refusals
from orchestrator.providers.kaggle.client import Connection, Push, Quota
from orchestrator.providers.kaggle.leftovers import gather, kept, save_log
from orchestrator.providers.kaggle.notes import Notebook, Session
from orchestrator.providers.kaggle.source import kernel_source
from orchestrator.providers.kaggle.staging import stage
from orchestrator.providers.kaggle.stream import lines, pieces
from orchestrator.providers.kaggle.wire import Credentials, KaggleSaid

LONGEST_SESSION_S = 12 * 3600
MARGIN_S = 900.0
"""Kaggle ends a session at its limit without warning, and saving what it left takes minutes per gigabyte."""
TIMEOUT_OVER_S = 300
"""Kaggle's own limit is set this much above the worker's budget: a second pair of eyes, not the first."""
GPU_SESSIONS = 2
T4_BYTES = 15_800_000_000
"""What one of the two cards offers to a process; every process trains with a card of its own."""
RAM_BYTES = 29 << 30
START_UP_S = 300.0
"""Queue, image, installing the pinned libraries, loading the model."""
UNSURE_S = 180.0
"""A push whose answer was lost may still show up for so long."""
ENDED = {
    "COMPLETE": "",
    "ERROR": "the kernel ended with an error",
    "CANCEL_ACKNOWLEDGED": "Kaggle ended the session (time limit, or stopped by its owner)",
}
ALIVE = frozenset({"QUEUED", "RUNNING", "CANCEL_REQUESTED", "NEW_SCRIPT"})


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a session is at Kaggle, and with whom to speak about it."""

    connection: Connection
    owner: str
    slug: str


class KaggleProvider:
    """Implements `ports.Provider` and `ports.Followed`. `folder` keeps notes and logs; nothing secret is written there.

    `endpoint` (loopback) stands in for Kaggle's own host. What Kaggle said of an account or a session is believed for
    `fresh_s` seconds. Account settings: `username`, `accelerator` ("none" for machines without GPU, which need no quota),
    `slots` (sessions at once, 2 at most), `session_s`.
    """

    capabilities = Capabilities(provider="kaggle", shares_disk=False, same_network=False, personal=True)

    def __init__(
        self,
        vault: Vault,
        folder: Path,
        endpoint: str | None = None,
        *,
        fresh_s: float = 10.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._vault, self._endpoint, self._fresh_s, self._now = vault, endpoint, fresh_s, now
        self._notebook = Notebook(folder)
        self._names: dict[str, str] = {}
        self._rooms: dict[str, tuple[float, Room]] = {}
        self._seen: dict[str, tuple[float, Observation]] = {}
        self._logged: dict[str, float] = {}

    # --- room ---

    def room(self, account: Account) -> Room:
        known = self._rooms.get(account.id + account.credentials)
        if known is not None and time.monotonic() < known[0]:
            return known[1]
        room = self._room(account)
        self._rooms[account.id + account.credentials] = (time.monotonic() + self._fresh_s, room)
        return room

    def _room(self, account: Account) -> Room:
        gpu = _wants_gpu(account)
        slots = min(GPU_SESSIONS, max(0, int(account.config.get("slots", GPU_SESSIONS))))
        session_s = min(float(account.config.get("session_s", LONGEST_SESSION_S)), LONGEST_SESSION_S - MARGIN_S)
        memory = T4_BYTES if gpu else RAM_BYTES
        if not account.credentials:
            return Room(slots=0, session_s=session_s, shut="no Kaggle token is stored for this account")
        try:
            quota = self._connect(account).quota()
        except KaggleSaid as refusal:
            open_at = self._now() + (refusal.retry_after or refusals.PAUSE_S) if refusal.status == 429 else None
            return Room(slots=0, session_s=session_s, shut=refusals.in_words(refusal), open_at=open_at)
        if gpu and quota.reserved_s > 0 and self._notebook.running(account.id) == 0:
            slots = max(0, slots - 1)  # its owner uses a session by hand
        return Room(
            slots=slots,
            session_s=session_s,
            memory_bytes=memory,
            start_up_s=START_UP_S,
            hours_left=quota.left_s / 3600 if gpu else None,
            refresh_at=quota.refresh_at if gpu else None,
        )

    def check(self, account: Account) -> str:
        """Who the stored credentials sign in as, in words; raises `ProviderUnavailable` in words if they do not."""
        name = self._connect(account).username()
        wanted = account.config.get("username")
        if wanted and wanted.lower() != name.lower():
            raise ProviderUnavailable(f"this token belongs to {name}, not to {wanted}")
        return f"signed in at Kaggle as {name}"

    # --- launch ---

    def launch(self, request: LaunchRequest) -> str:
        connection = self._connect(request.account)
        slug = _slug(request.lease_id)
        noted = self._note(request)
        try:
            place = _Place(connection=connection, owner=self._owner(request.account, connection), slug=slug)
            if not self._exists(place):
                self._start(place, request, noted)
        except KaggleSaid as refusal:
            error = refusals.as_launch_error(refusal, now=self._now(), refresh_at=self._refresh_at(connection, refusal))
            raise error from None
        self._notebook.write(request.lease_id, pushed=True, account=request.account.id)
        self._forget_room(request.account)
        return f"{place.owner}/{slug}"

    def _note(self, request: LaunchRequest) -> Session:
        given = request.assignment
        return self._notebook.write(
            request.lease_id,
            account=request.account.id,
            prefix=f"jobs/{request.job_id}/f{given.fence}/" if given else "",
            checkpoint=f"trainhop-resume-{_plain(request.lease_id.removeprefix('lease-'))}"
            if given and given.resume
            else "",
        )

    def _start(self, place: _Place, request: LaunchRequest, noted: Session) -> None:
        """Stage and push; a refused launch leaves nothing behind at Kaggle."""
        if self._endpoint is None and request.assignment and request.assignment.spec.base_model.startswith("/"):
            raise LaunchRejected(
                f"the base model {request.assignment.spec.base_model} is a folder of the server; a Kaggle session "
                "can only load one from the Hugging Face hub: name it as org/name in the job"
            )
        try:
            folder = self._notebook.of(request.lease_id).folder
            datasets = stage(place.connection, place.owner, request, folder, checkpoint=noted.checkpoint)
            self._push(place, request, datasets)
        except (KaggleSaid, LaunchRejected):
            with contextlib.suppress(ProviderUnavailable):
                self._remove(place, noted)
            raise

    def _push(self, place: _Place, request: LaunchRequest, datasets: tuple[str, ...]) -> None:
        push = Push(
            slug=place.slug,
            source=kernel_source(request),
            machine_shape="NvidiaTeslaT4" if _wants_gpu(request.account) else "",
            internet=_needs_internet(request),
            datasets=datasets,
            timeout_s=int(min(request.budget_s + TIMEOUT_OVER_S, LONGEST_SESSION_S)),
        )
        self._notebook.write(request.lease_id, unsure_until=self._now() + UNSURE_S)
        try:
            place.connection.push(place.owner, push)
        except KaggleSaid:
            self._notebook.write(request.lease_id, unsure_until=0.0)
            raise
        except ProviderUnavailable:
            if not self._exists(place):
                raise  # it may still appear; until then nobody can tell
        self._notebook.write(request.lease_id, unsure_until=0.0)

    def _exists(self, place: _Place) -> bool:
        try:
            place.connection.state(place.owner, place.slug)
        except KaggleSaid as refusal:
            if refusal.status in (403, 404):  # 403 is also what a name that nobody has is answered with
                return False
            raise
        return True

    def _refresh_at(self, connection: Connection, refusal: KaggleSaid) -> float | None:
        if "quota" not in refusal.words.lower():
            return None
        with contextlib.suppress(ProviderUnavailable):
            return connection.quota().refresh_at
        return None

    # --- a session's life ---

    def observe(self, handles: Sequence[Handle]) -> list[Observation]:
        silent: dict[str, str] = {}  # one that does not answer is asked once, not once per session
        seen: list[Observation] = []
        for handle in handles:
            lease, account = handle.lease_id, handle.account.id
            if account in silent:
                seen.append(Observation(lease_id=lease, liveness=Liveness.UNKNOWN, detail=silent[account]))
                continue
            try:
                seen.append(self._observe(handle))
            except ProviderUnavailable as error:
                silent[account] = str(error)
                seen.append(Observation(lease_id=lease, liveness=Liveness.UNKNOWN, detail=str(error)))
        return seen

    def _observe(self, handle: Handle) -> Observation:
        lease = handle.lease_id
        noted = self._notebook.of(lease).read()
        if noted.state:
            return Observation(lease_id=lease, liveness=Liveness.ENDED, detail=noted.detail)
        if not handle.account.credentials:
            return Observation(lease_id=lease, liveness=Liveness.ENDED, detail="its Kaggle account was removed")
        at, known = self._seen.get(lease, (0.0, None))
        if known is None or time.monotonic() > at + self._fresh_s:
            known = self._look(handle, noted)
            self._seen[lease] = (time.monotonic(), known)
        return known

    def _look(self, handle: Handle, noted: Session) -> Observation:
        lease, place = handle.lease_id, self._place(handle)
        external = f"{place.owner}/{place.slug}"
        try:
            state, failure = place.connection.state(place.owner, place.slug)
        except KaggleSaid as refusal:
            if refusal.status != 404:
                raise
            if self._now() < noted.unsure_until:
                return Observation(lease_id=lease, liveness=Liveness.UNKNOWN, detail="may be about to start")
            return self._ended(handle, "DELETED", "there is no such kernel at Kaggle (never started, or deleted)")
        if state in ENDED:
            return self._ended(handle, state, failure or ENDED[state])
        liveness = Liveness.RUNNING if state in ALIVE else Liveness.UNKNOWN
        detail = state.lower() if state in ALIVE else f"Kaggle says {state}, which this version does not know"
        return Observation(lease_id=lease, liveness=liveness, detail=detail, external_id=external)

    def _ended(self, handle: Handle, state: str, detail: str) -> Observation:
        """Note an end, which nothing takes back."""
        self._forget_room(handle.account)
        if self._notebook.of(handle.lease_id).read().account:
            self._notebook.write(handle.lease_id, state=state, detail=detail, ended_at=self._now())
        return Observation(lease_id=handle.lease_id, liveness=Liveness.ENDED, detail=detail)

    def stop(self, handle: Handle) -> None:
        """Kaggle has no cancel that can be used: take what can be had, then delete the kernel, which ends its run."""
        self._seen.pop(handle.lease_id, None)
        if self._observe(handle).liveness is Liveness.ENDED:
            return
        place, notes = self._place(handle), self._notebook.of(handle.lease_id)
        with contextlib.suppress(ProviderUnavailable):
            save_log(place.connection, place.owner, place.slug, notes)
        with contextlib.suppress(ProviderUnavailable):
            gather(place.connection, place.owner, place.slug, notes)
        place.connection.delete_kernel(place.owner, place.slug)
        self._seen.pop(handle.lease_id, None)
        self._notebook.write(handle.lease_id, account=handle.account.id, collected=True)
        self._ended(handle, "DELETED", self._stopped_words(place, handle.account))

    def _stopped_words(self, place: _Place, account: Account) -> str:
        """Kaggle reserves GPU hours exactly while a session runs: they tell whether the delete was obeyed."""
        said = "stopped by deleting its kernel"
        quota: Quota | None = None
        with contextlib.suppress(ProviderUnavailable):
            quota = place.connection.quota()
        if quota is not None and quota.reserved_s > 0 and self._notebook.running(account.id) <= 1:
            return f"{said}; Kaggle still reserves {quota.reserved_s / 3600:.1f} GPU hours for it"
        return said

    def collect(self, handle: Handle) -> Leftovers:
        notes = self._notebook.of(handle.lease_id)
        noted = notes.read()
        if not noted.collected and handle.account.credentials:
            place = self._place(handle)
            try:
                complete = gather(place.connection, place.owner, place.slug, notes)
            except KaggleSaid as refusal:
                if refusal.status != 404:
                    raise
                complete = True
            if not complete and noted.state == "COMPLETE" and self._now() < noted.ended_at + UNSURE_S:
                raise ProviderUnavailable("Kaggle does not list the files of this session yet")
            if noted.account:
                self._notebook.write(handle.lease_id, collected=True)
        return kept(notes)

    def forget(self, handle: Handle) -> None:
        notes = self._notebook.of(handle.lease_id)
        noted = notes.read()
        if handle.account.credentials and not noted.forgotten:
            place = self._place(handle)
            with contextlib.suppress(ProviderUnavailable):
                save_log(place.connection, place.owner, place.slug, notes)
            self._remove(place, noted)
        notes.clear()
        if noted.account:
            self._notebook.write(handle.lease_id, forgotten=True)
        self._seen.pop(handle.lease_id, None)

    def _remove(self, place: _Place, noted: Session) -> None:
        place.connection.delete_kernel(place.owner, place.slug)
        if noted.checkpoint:
            place.connection.delete_dataset(place.owner, noted.checkpoint)

    # --- its words ---

    def follow(self, handle: Handle) -> Iterator[str]:
        notes = self._notebook.of(handle.lease_id)
        if notes.read().state == "DELETED":
            with contextlib.suppress(FileNotFoundError), notes.log.open(encoding="utf-8", errors="replace") as log:
                yield from (line.rstrip("\n") for line in log)
            return
        place = self._place(handle)
        with place.connection.log(place.owner, place.slug) as answer:
            for line in lines(notes.keep(pieces(answer))):
                self._logged[handle.lease_id] = time.monotonic()
                yield line

    def log(self, handle: Handle, offset: int, limit: int) -> bytes | None:
        notes = self._notebook.of(handle.lease_id)
        noted = notes.read()
        stale = time.monotonic() > self._logged.get(handle.lease_id, 0.0) + self._fresh_s
        if stale and noted.is_live and handle.account.credentials:
            self._logged[handle.lease_id] = time.monotonic()
            with contextlib.suppress(ProviderUnavailable):
                place = self._place(handle)
                save_log(place.connection, place.owner, place.slug, notes)
        if not notes.log.is_file():
            return b""
        with notes.log.open("rb") as file:
            file.seek(offset)
            return file.read(limit)

    # --- who ---

    def _connect(self, account: Account) -> Connection:
        """Opens the vault for the moment of a call."""
        try:
            if not account.credentials:
                raise ProviderUnavailable(f"no Kaggle token is stored for {account.name}")
            text = self._vault.open(account.credentials)
            return Connection(Credentials.read(text, account.config.get("username")), self._endpoint)
        except (VaultError, ValueError) as error:
            raise ProviderUnavailable(str(error)) from None

    def _owner(self, account: Account, connection: Connection) -> str:
        known = account.id + account.credentials
        if known not in self._names:
            self._names[known] = account.config.get("username") or connection.username()
        return self._names[known]

    def _place(self, handle: Handle) -> _Place:
        connection = self._connect(handle.account)
        owner, _, slug = (handle.external_id or "").partition("/")
        if not slug:
            owner, slug = self._owner(handle.account, connection), _slug(handle.lease_id)
        return _Place(connection=connection, owner=owner, slug=slug)

    def _forget_room(self, account: Account) -> None:
        self._rooms.pop(account.id + account.credentials, None)


def _wants_gpu(account: Account) -> bool:
    return account.config.get("accelerator", "gpu") != "none"


def _needs_internet(request: LaunchRequest) -> bool:
    """For grants with an address, a server to call, or a base model on the hub."""
    given = request.assignment
    if given is None or request.server_url is not None:
        return True
    urls = [g.url for g in (*given.datasets, *given.uploads, *([given.resume] if given.resume else []))]
    return any(urls) or not given.spec.base_model.startswith("/")


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _slug(lease_id: str) -> str:
    """The name of a lease's kernel: fresh for every lease, found again by nothing but the lease."""
    return f"trainhop-{_plain(lease_id)}"[:50]
