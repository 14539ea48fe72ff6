"""Notebooks that speak through documents in their owner's account, because neither side can call the other.

The server makes the documents and looks into them; the notebook, signed in as the account's owner, replaces their text. Each
is written by one side alone, so that nothing can be overwritten, and says again what the other has not heard.
"""

from __future__ import annotations

import hashlib
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from orchestrator.domain.errors import ConflictError, TrainhopError, UnavailableError
from orchestrator.domain.lifecycle import EndReason, LeaseState
from orchestrator.domain.model import Lease, OneTimeCode
from orchestrator.ports.providers import (
    Context,
    ObjectMissing,
    ProviderError,
    Store,
    StoreError,
    SupportsDocuments,
    SupportsOwner,
)
from orchestrator.services import notebooks, offline_sessions
from orchestrator.services.errors import from_store
from orchestrator.services.leases import directive, lease_prefix, release_lease
from orchestrator.services.worker_messages import LogReader
from worker.shared.messages import Assignment, Grant
from worker.shared.notebook_messages import Claimed, MailboxReply, MailboxRequest
from worker.shared.wheel import Wheel

LISTENS_S = 600.0
"""How long after its lease a notebook still hears that its last words have arrived."""

UP, DOWN, WHEEL = "up.json", "down.json", "worker.whl"


class LetterStore(Store, SupportsDocuments, Protocol):
    """A store whose owner's notebooks can get at its documents."""


def letter_store(ctx: Context) -> LetterStore | None:
    """The store whose documents a notebook can use, if the current one has any."""
    store = ctx.stores.current()
    return store if isinstance(store, SupportsDocuments) else None


def need_letter_store(ctx: Context) -> LetterStore:
    """The same; raises `ConflictError` if there is none."""
    store = letter_store(ctx)
    if store is None:
        raise ConflictError(
            "new files go to a folder of this server, which no notebook can reach: see trainhop store use drive"
        )
    return store


def open_mailbox(ctx: Context, wheel: Wheel) -> tuple[str, dict[str, str], str]:
    """Make the documents of one notebook. Returns the mailbox's name, the documents' addresses, and whose account it is."""
    store = need_letter_store(ctx)
    mailbox = f"notebooks/{secrets.token_hex(8)}"
    keys = {"wheel": WHEEL, "up": UP, "down": DOWN}
    try:
        with tempfile.NamedTemporaryFile() as file:
            file.write(wheel.data)
            file.flush()
            store.put(f"{mailbox}/{WHEEL}", Path(file.name))
        for name in (UP, DOWN):
            store.write_document(f"{mailbox}/{name}", "{}")
        found = {kind: store.address(f"{mailbox}/{name}") for kind, name in keys.items()}
        return mailbox, found, _owner(store)
    except StoreError as error:
        raise from_store(error) from error


def publish(ctx: Context, job_id: str, file_name: str, notebook: str) -> tuple[str, str]:
    """Put a job's notebook into the store's account in place of its earlier one: its link, and whose account that is."""
    store, key = need_letter_store(ctx), f"jobs/{job_id}/{file_name}"
    try:
        store.write_document(key, notebook)
        return store.notebook_link(key), _owner(store)
    except StoreError as error:
        raise from_store(error) from error


def _owner(store: Store) -> str:
    return store.owner() if isinstance(store, SupportsOwner) else ""


class MailboxPoller:
    """Looks into every open mailbox; what he remembers spares work and may be lost."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._ears: dict[str, LogReader] = {}
        self._sent: dict[str, MailboxReply] = {}

    def round(self) -> None:
        """Read what is new, act on it and answer. A store that does not answer is asked again in the next round."""
        with self._ctx.uow() as tx:
            mailboxes = tx.open_mailboxes()
        for claim in mailboxes:
            try:
                self._deliver(claim)
            except (StoreError, UnavailableError):
                self._was_not_heard(claim)
            except ProviderError:
                continue

    def _was_not_heard(self, claim: OneTimeCode) -> None:
        """Silence says nothing of a notebook whose letters we cannot read."""
        with self._ctx.uow() as tx:
            lease = tx.lease(claim.lease_id) if claim.lease_id else None
            if lease is not None and lease.state.is_live:
                lease.expires_at = max(lease.expires_at, self._ctx.clock.now() + self._ctx.limits.lease_s)
                tx.save_lease(lease)

    def _deliver(self, claim: OneTimeCode) -> None:
        store = self._ctx.stores.get(claim.store)
        assert isinstance(store, SupportsDocuments)
        with self._ctx.uow() as tx:
            lease = tx.lease(claim.lease_id) if claim.lease_id else None
        ends = claim.expires_at if lease is None else (lease.ended_at or self._ctx.clock.now()) + LISTENS_S
        if self._ctx.clock.now() > ends:
            self._close(store, claim)
            return
        letter = _read(store, claim)
        if letter is not None:
            self._answer(store, claim, self._reply(store, claim, letter))

    def _answer(self, store: SupportsDocuments, claim: OneTimeCode, answer: MailboxReply) -> None:
        if self._sent.get(claim.mailbox) != answer:
            store.write_document(f"{claim.mailbox}/{DOWN}", answer.model_dump_json(exclude_defaults=True))
            self._sent[claim.mailbox] = answer

    def _reply(self, store: Store, claim: OneTimeCode, letter: MailboxRequest) -> MailboxReply:
        if letter.claim is not None and (claim.lease_id is None or not letter.lines):
            return self._claim(store, claim, letter)
        if claim.lease_id is None or claim.nonce != letter.nonce:
            return MailboxReply(nonce=letter.nonce, refused="this notebook runs in another tab: a code works once")
        return self._listen(letter, claim.lease_id)

    def _claim(self, store: Store, claim: OneTimeCode, letter: MailboxRequest) -> MailboxReply:
        asked, sent = letter.claim, self._sent.get(claim.mailbox)
        assert asked is not None
        if sent is not None and sent.nonce == letter.nonce:
            return sent
        if self._ctx.tokens.hash(asked.code) != claim.code_hash:
            return MailboxReply(nonce=letter.nonce, refused="the code is not the one that this notebook was made with")
        try:
            claimed = notebooks.claim(self._ctx, asked, offline=True)
            assignment = self._kit(store, claimed)
        except TrainhopError as error:
            return MailboxReply(nonce=letter.nonce, refused=str(error))
        ticket = claimed.ticket.model_copy(update={"assignment": assignment, "server_url": None})
        return MailboxReply(nonce=letter.nonce, taken=True, claimed=claimed.model_copy(update={"ticket": ticket}))

    def _kit(self, store: Store, claimed: Claimed) -> Assignment:
        """The assignment with everything that it reads where the notebook can read it; gives the lease back if that fails."""
        with self._ctx.uow() as tx:
            lease = tx.lease(claimed.ticket.lease)
        assert lease is not None
        try:
            ready = offline_sessions.offline_bundle(self._ctx, lease)
            brought = {key: _bring(store, _place(lease, key), read) for key, read in ready.inputs.items()}
        except StoreError as error:
            _give_back(self._ctx, lease, f"the store takes nothing now ({error})")
            raise ConflictError(f"the store takes nothing now ({error}): make a new notebook later") from error

        def reachable(grant: Grant) -> Grant:
            return grant.model_copy(update={"url": brought.get(grant.key, grant.url)})

        resume = ready.assignment.resume
        changes = {
            "datasets": tuple(map(reachable, ready.assignment.datasets)),
            "model": tuple(map(reachable, ready.assignment.model)),
            "resume": reachable(resume) if resume is not None else None,
        }
        return ready.assignment.model_copy(update=changes)

    def _listen(self, letter: MailboxRequest, lease_id: str) -> MailboxReply:
        ear = self._ears.setdefault(lease_id, LogReader(ctx=self._ctx, lease_id=lease_id))
        ear.listen(letter.lines)
        with self._ctx.uow() as tx:
            lease = tx.lease(lease_id)
            job = tx.job(lease.job_id) if lease is not None else None
        assert lease is not None
        assert job is not None
        answer = MailboxReply(nonce=letter.nonce, taken=True, heard=ear.seq)
        if not lease.state.is_live:
            return answer.model_copy(update={"over": lease.detail or str(lease.end_reason)})
        return answer.model_copy(update={"directive": directive(lease, job)})

    def _close(self, store: Store, claim: OneTimeCode) -> None:
        """A notebook that comes later finds nothing, and says what that means."""
        for name in (WHEEL, UP, DOWN):
            store.delete(f"{claim.mailbox}/{name}")
        self._sent.pop(claim.mailbox, None)
        self._ears.pop(claim.lease_id or "", None)
        with self._ctx.uow() as tx:
            current = tx.claim(claim.code_hash)
            if current is not None:
                current.mailbox = ""
                tx.save_claim(current)


def _read(store: SupportsDocuments, claim: OneTimeCode) -> MailboxRequest | None:
    """What the notebook wrote; None as long as it has not, or if its text is no letter."""
    try:
        return MailboxRequest.model_validate_json(store.read_document(f"{claim.mailbox}/{UP}"))
    except (ValidationError, ObjectMissing):
        return None


def _place(lease: Lease, key: str) -> str:
    """A model's files are called alike in every job: they lie in their lease's folder and go with it."""
    return f"{lease_prefix(lease)}{hashlib.sha256(key.encode()).hexdigest()}" if key.startswith("model/") else key


def _bring(store: Store, key: str, read: Callable[[], Iterator[bytes]]) -> str:
    """The object's address in the notebook's store; copied there if it lies elsewhere."""
    assert isinstance(store, SupportsDocuments)
    try:
        store.stat(key)
    except ObjectMissing:
        with tempfile.NamedTemporaryFile() as file:
            for chunk in read():
                file.write(chunk)
            file.flush()
            store.put(key, Path(file.name))
    return store.address(key)


def _give_back(ctx: Context, lease: Lease, why: str) -> None:
    now = ctx.clock.now()
    with ctx.uow() as tx:
        current, job = tx.lease(lease.id), tx.job(lease.job_id)
        if current is not None and job is not None and current.state.is_live:
            end = EndReason.LAUNCH_FAILED
            release_lease(tx, current, job, LeaseState.EXPIRED, end, detail=why, at=now, actor="server", counts=False)
    ctx.wake()
