"""Mailboxes: notebooks and the server exchange messages through documents, because neither side can call the other.

The documents are stored in the account of the notebook's owner. The server creates and reads them. The notebook, signed
in as the owner, replaces their text. Only one side writes each document, so nothing can be overwritten. A side repeats
its messages until the other has read them.
"""

from __future__ import annotations

import hashlib
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from orchestrator.domain.accounts import OneTimeCode
from orchestrator.domain.errors import ConflictError, TrainhopError, UnavailableError
from orchestrator.domain.jobs import Lease
from orchestrator.domain.lifecycle import EndReason, LeaseState
from orchestrator.ports.providers import ProviderError
from orchestrator.ports.stores import ObjectMissing, Store, StoreError, SupportsDocuments, SupportsOwner
from orchestrator.services import notebooks, offline_sessions
from orchestrator.services.context import Context
from orchestrator.services.failed_starts import Explanation
from orchestrator.services.leases import directive, lease_prefix, release_lease
from orchestrator.services.stores import from_store
from orchestrator.services.worker_messages import LogReader
from worker.shared.messages import MODEL_FOLDERS, Assignment, Grant
from worker.shared.notebook_messages import Claimed, MailboxReply, MailboxRequest
from worker.shared.wheel import Wheel

LISTENS_S = 600.0
"""How long after the end of its lease a notebook still gets acknowledgements of its last messages."""

UP, DOWN, WHEEL = "up.json", "down.json", "worker.whl"


class MailboxStore(Store, SupportsDocuments, Protocol):
    """A store with documents that the owner's notebooks can read and replace."""


def mailbox_store(ctx: Context) -> MailboxStore | None:
    """The current store, if a notebook can use its documents."""
    store = ctx.stores.current()
    return store if isinstance(store, SupportsDocuments) else None


def need_mailbox_store(ctx: Context) -> MailboxStore:
    """The current store, as `letter_store`. Raises `ConflictError` if a notebook cannot use its documents."""
    store = mailbox_store(ctx)
    if store is None:
        raise ConflictError(
            "The store in use is a folder of this server, which notebooks cannot reach. Run `trainhop store use drive`."
        )
    return store


def open_mailbox(ctx: Context, wheel: Wheel) -> tuple[str, dict[str, str], str]:
    """Create the documents of one notebook.

    Returns the mailbox's name, the addresses of the documents, and the owner of the account.
    """
    store = need_mailbox_store(ctx)
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
    """Replace a job's notebook in the store's account by this one. Returns its link and the owner of the account."""
    store, key = need_mailbox_store(ctx), f"jobs/{job_id}/{file_name}"
    try:
        store.write_document(key, notebook)
        return store.notebook_link(key), _owner(store)
    except StoreError as error:
        raise from_store(error) from error


def _owner(store: Store) -> str:
    return store.owner() if isinstance(store, SupportsOwner) else ""


class MailboxPoller:
    """Polls every open mailbox. What it remembers only saves work and may be lost."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._readers: dict[str, LogReader] = {}
        self._sent: dict[str, MailboxReply] = {}

    def round(self) -> None:
        """Read what is new, act on it and reply. If a store does not answer, the next round tries again."""
        with self._ctx.uow() as tx:
            mailboxes = tx.codes.with_mailbox()
        for claim in mailboxes:
            try:
                self._deliver(claim)
            except (StoreError, UnavailableError):
                self._was_not_heard(claim)
            except ProviderError:
                continue

    def _was_not_heard(self, claim: OneTimeCode) -> None:
        """Extend the lease: silence proves nothing while the notebook's messages cannot be read."""
        with self._ctx.uow() as tx:
            lease = tx.leases.get(claim.lease_id) if claim.lease_id else None
            if lease is not None and lease.state.is_live:
                lease.expires_at = max(lease.expires_at, self._ctx.clock.now() + self._ctx.limits.lease_s)
                tx.leases.save(lease)

    def _deliver(self, claim: OneTimeCode) -> None:
        store = self._ctx.stores.get(claim.store)
        assert isinstance(store, SupportsDocuments)
        with self._ctx.uow() as tx:
            lease = tx.leases.get(claim.lease_id) if claim.lease_id else None
        ends = claim.expires_at if lease is None else (lease.ended_at or self._ctx.clock.now()) + LISTENS_S
        if self._ctx.clock.now() > ends:
            self._close(store, claim)
            return
        message = _read(store, claim)
        if message is not None:
            self._answer(store, claim, self._reply(store, claim, message))

    def _answer(self, store: SupportsDocuments, claim: OneTimeCode, answer: MailboxReply) -> None:
        if self._sent.get(claim.mailbox) != answer:
            store.write_document(f"{claim.mailbox}/{DOWN}", answer.model_dump_json(exclude_defaults=True))
            self._sent[claim.mailbox] = answer

    def _reply(self, store: Store, claim: OneTimeCode, message: MailboxRequest) -> MailboxReply:
        if message.claim is not None and (claim.lease_id is None or not message.lines):
            return self._claim(store, claim, message)
        if claim.lease_id is None or claim.nonce != message.nonce:
            return MailboxReply(
                nonce=message.nonce, refused="This notebook is already running in another tab. A code works once."
            )
        return self._listen(message, claim.lease_id)

    def _claim(self, store: Store, claim: OneTimeCode, message: MailboxRequest) -> MailboxReply:
        request, sent = message.claim, self._sent.get(claim.mailbox)
        assert request is not None
        if sent is not None and sent.nonce == message.nonce:
            return sent
        if self._ctx.tokens.hash(request.code) != claim.code_hash:
            return MailboxReply(
                nonce=message.nonce, refused="The code does not belong to this notebook. Create a new one."
            )
        try:
            claimed = notebooks.claim(self._ctx, request, offline=True)
            assignment = self._kit(store, claimed)
        except TrainhopError as error:
            return MailboxReply(nonce=message.nonce, refused=str(error))
        ticket = claimed.ticket.model_copy(update={"assignment": assignment, "server_url": None})
        return MailboxReply(nonce=message.nonce, taken=True, claimed=claimed.model_copy(update={"ticket": ticket}))

    def _kit(self, store: Store, claimed: Claimed) -> Assignment:
        """The assignment, with every file that it reads copied to where the notebook can read it.

        Releases the lease if that fails.
        """
        with self._ctx.uow() as tx:
            lease = tx.leases.get(claimed.ticket.lease)
        assert lease is not None
        try:
            ready = offline_sessions.offline_bundle(self._ctx, lease)
            brought = {key: _bring(store, _place(lease, key), read) for key, read in ready.inputs.items()}
        except StoreError as error:
            _give_back(self._ctx, lease, f"the store does not accept files now ({error})")
            raise ConflictError(
                f"The store does not accept files now ({error}). Create a new notebook later."
            ) from error

        def reachable(grant: Grant) -> Grant:
            return grant.model_copy(update={"url": brought.get(grant.key, grant.url)})

        resume = ready.assignment.resume
        changes = {
            "datasets": tuple(map(reachable, ready.assignment.datasets)),
            "model": tuple(map(reachable, ready.assignment.model)),
            "judge": tuple(map(reachable, ready.assignment.judge)),
            "resume": reachable(resume) if resume is not None else None,
        }
        return ready.assignment.model_copy(update=changes)

    def _listen(self, message: MailboxRequest, lease_id: str) -> MailboxReply:
        reader = self._readers.setdefault(lease_id, LogReader(ctx=self._ctx, lease_id=lease_id))
        reader.read(message.lines)
        with self._ctx.uow() as tx:
            lease = tx.leases.get(lease_id)
            job = tx.jobs.get(lease.job_id) if lease is not None else None
        assert lease is not None
        assert job is not None
        answer = MailboxReply(nonce=message.nonce, taken=True, heard=reader.seq)
        if not lease.state.is_live:
            return answer.model_copy(update={"over": lease.detail or str(lease.end_reason)})
        return answer.model_copy(update={"directive": directive(lease, job)})

    def _close(self, store: Store, claim: OneTimeCode) -> None:
        """Delete the documents. A notebook that comes later does not find them, and tells its user what that means."""
        for name in (WHEEL, UP, DOWN):
            store.delete(f"{claim.mailbox}/{name}")
        self._sent.pop(claim.mailbox, None)
        self._readers.pop(claim.lease_id or "", None)
        with self._ctx.uow() as tx:
            current = tx.codes.get(claim.code_hash)
            if current is not None:
                current.mailbox = ""
                tx.codes.save(current)


def _read(store: SupportsDocuments, claim: OneTimeCode) -> MailboxRequest | None:
    """The notebook's message. None if there is none yet, or if its text is not a valid message."""
    try:
        return MailboxRequest.model_validate_json(store.read_document(f"{claim.mailbox}/{UP}"))
    except (ValidationError, ObjectMissing):
        return None


def _place(lease: Lease, key: str) -> str:
    """The key of a file in the notebook's store.

    Files of a model have the same names in every job. So they are stored in their lease's folder and deleted with it.
    """
    is_of_a_model = key.partition("/")[0] in MODEL_FOLDERS
    return f"{lease_prefix(lease)}{hashlib.sha256(key.encode()).hexdigest()}" if is_of_a_model else key


def _bring(store: Store, key: str, read: Callable[[], Iterator[bytes]]) -> str:
    """The object's address in the notebook's store. The object is copied there if it is stored elsewhere."""
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


def _give_back(ctx: Context, lease: Lease, words: str) -> None:
    now = ctx.clock.now()
    with ctx.uow() as tx:
        current, job = tx.leases.get(lease.id), tx.jobs.get(lease.job_id)
        if current is not None and job is not None and current.state.is_live:
            end, why = EndReason.LAUNCH_FAILED, Explanation(words)
            release_lease(tx, current, job, LeaseState.EXPIRED, end, why, at=now, actor="server", counts=False)
    ctx.wake()
