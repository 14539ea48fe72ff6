"""Make an uploaded file the job's head, and delete old checkpoints to free space."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, cast

from orchestrator.domain.errors import NotFoundError
from orchestrator.domain.jobs import Checkpoint, Job, Lease
from orchestrator.domain.lifecycle import CheckpointState
from orchestrator.ports.repository import Transaction
from orchestrator.ports.stores import ObjectMissing, Store, StoreBusy, StoreError
from orchestrator.services import heads, model_files
from orchestrator.services.context import Context
from orchestrator.services.leases import held, lease_prefix
from orchestrator.services.stores import from_store
from worker.shared.checkpoint_header import (
    MAX_HEADER_BYTES,
    CheckpointError,
    Header,
    check_answers,
    check_continues,
    check_parameters,
    read_header,
)
from worker.shared.job_spec import JobSpec
from worker.shared.manifest import Manifest, Recipe
from worker.shared.messages import Offer, OfferReply

_ACCEPTED = frozenset({CheckpointState.COMMITTED, CheckpointState.PRUNED})
_OF_THE_MODEL = [name for name, field in Recipe.model_fields.items() if not field.is_required()]
HEADER_BYTES = 4 << 20
"""The part of a stored checkpoint that is read to compare its manifest. Larger headers are read whole."""


@dataclass(frozen=True, kw_only=True)
class Commit:
    """The reply to an offer, and whether older checkpoints are no longer needed because of it."""

    reply: OfferReply
    pruned: bool = False


def check_offer(ctx: Context, offer: Offer) -> str:
    """Read the offered file back from the store, outside a transaction. Returns why it is refused, or nothing.

    The offer is written down before, so that its file can be deleted if the offer is never committed.
    """
    with ctx.uow() as tx:
        lease, job = held(tx, offer.lease, offer.fence)
        known = tx.checkpoints.get(job.id, offer.sha256)
        if known is not None and known.state in _ACCEPTED:
            return ""
        if refusal := _refusal(offer, lease, job, known):
            return refusal
        store = ctx.stores.get(lease.store)
        if known is None:
            tx.checkpoints.add(_offered(offer, lease, store.name, ctx.clock.now()))
        parent = tx.checkpoints.get(job.id, job.head or "")
    of_evaluation = job.is_evaluation
    header = _read_back(store, offer, of_evaluation=of_evaluation)
    return header if isinstance(header, str) else _misfit(ctx, header, parent, of_evaluation=of_evaluation)


def commit(ctx: Context, tx: Transaction, offer: Offer, refusal: str) -> Commit:
    """Make the offered checkpoint the head if it continues the head and `check_offer` has found no `refusal`.

    Repeating an offer is harmless. A refusal leaves the head as it is.
    """
    now = ctx.clock.now()
    lease, job = held(tx, offer.lease, offer.fence)
    checkpoint = tx.checkpoints.get(job.id, offer.sha256)
    if checkpoint is not None and checkpoint.state in _ACCEPTED:
        return Commit(reply=OfferReply(committed=True))
    if refusal := refusal or _refusal(offer, lease, job, checkpoint):
        if checkpoint is not None and checkpoint.state is CheckpointState.OFFERED:
            checkpoint.to(CheckpointState.ABANDONED)
            tx.checkpoints.save(checkpoint)
        return Commit(reply=_refuse(tx, job, lease, offer, refusal, now))
    if checkpoint is None:
        raise NotFoundError(f"The offer {offer.sha256[:12]} has expired. Offer the checkpoint again.")
    _commit(tx, job, lease, checkpoint, now)
    return Commit(reply=OfferReply(committed=True), pruned=heads.prune_unneeded(tx, job, lease))


def _refuse(tx: Transaction, job: Job, lease: Lease, offer: Offer, refusal: str, now: float) -> OfferReply:
    job.note("checkpoint.refused", at=now, actor="server", lease_id=lease.id, reason=refusal, step=offer.manifest.step)
    tx.jobs.save(job)
    return OfferReply(committed=False, refusal=refusal)


def _offered(offer: Offer, lease: Lease, store: str, now: float) -> Checkpoint:
    return Checkpoint(
        sha256=offer.sha256,
        job_id=lease.job_id,
        lease_id=lease.id,
        fence=lease.fence,
        step=offer.manifest.step,
        parent=offer.manifest.parent,
        key=offer.key,
        size=offer.size,
        store=store,
        manifest=_kept(offer.manifest),
        created_at=now,
    )


def _kept(manifest: Manifest) -> dict[str, Any]:
    """The manifest without the state, of which only the step of the best evaluation is kept."""
    plain, best = manifest.model_dump(mode="json", exclude={"state"}), manifest.state.get("best")
    if isinstance(best, dict):
        plain["state"] = {"best": {"step": cast("dict[str, Any]", best).get("step")}}
    return plain


def _refusal(offer: Offer, lease: Lease, job: Job, known: Checkpoint | None) -> str:
    """Why this checkpoint cannot become the head, or nothing."""
    if known is not None and known.state is not CheckpointState.OFFERED:
        return "this checkpoint was already refused"
    manifest = offer.manifest
    if not offer.key.startswith(lease_prefix(lease)):
        return f"object {offer.key} was not granted to this lease"
    if (manifest.job, manifest.fence) != (job.id, lease.fence):
        return f"the manifest names job {manifest.job} fence {manifest.fence}, not {job.id} fence {lease.fence}"
    if manifest.parent != job.head:
        return f"the checkpoint continues {_short(manifest.parent)}, but the head is {_short(job.head)}"
    if not job.head_step < manifest.step <= job.total_steps:
        return f"step {manifest.step} does not follow {job.head_step} within {job.total_steps}"
    differing = Recipe.of(JobSpec.model_validate(job.spec)).differences(manifest.recipe)
    return "; ".join(f"{name}: the job says {mine!r}, the checkpoint {theirs!r}" for name, mine, theirs in differing)


def _short(sha256: str | None) -> str:
    return sha256[:12] if sha256 else "the start"


def _read_back(store: Store, offer: Offer, *, of_evaluation: bool) -> Header | str:
    """The header of the stored object, or how the object differs from the offer.

    Raises `UnavailableError` if the store does not answer.
    """
    try:
        stored = store.stat(offer.key)
        if (stored.sha256, stored.size) != (offer.sha256, offer.size):
            return (
                f"stored {stored.size} bytes with sha256 {stored.sha256[:12]}, expected {offer.size} with "
                f"{offer.sha256[:12]}"
            )
        header = _stored_header(store, offer.key, offer.size)
        check_parameters(header, of_evaluation=of_evaluation)
    except ObjectMissing:
        return f"the store has no file {offer.key}"
    except CheckpointError as error:
        return str(error)
    except StoreError as error:
        raise from_store(error) from error
    return header if header.manifest == offer.manifest else "the manifest in the file differs from the offered one"


def _misfit(ctx: Context, header: Header, parent: Checkpoint | None, *, of_evaluation: bool) -> str:
    """Why the file does not continue its parent. What cannot be read of the parent is not compared."""
    before = None
    if parent is not None and parent.key:
        if other := other_model(Recipe.model_validate(parent.manifest["recipe"]), header.manifest.recipe):
            return other
        # A session that resumes from what cannot be read will say so.
        with contextlib.suppress(StoreError, CheckpointError):
            before = _stored_header(ctx.stores.get(parent.store), parent.key, parent.size)
    try:
        if of_evaluation:
            check_answers(header, before)
        elif before is not None:
            check_continues(header, before)
    except CheckpointError as error:
        return str(error)
    return ""


def other_model(before: Recipe, now: Recipe) -> str:
    """How the model that a session loaded differs from the one before. What only the worker knows is compared."""
    pairs = ((name, getattr(before, name), getattr(now, name)) for name in _OF_THE_MODEL)
    return "; ".join(
        f"{n}: {a!r} in the checkpoint before, {b!r} in this one" for n, a, b in pairs if a not in (b, None)
    )


def _stored_header(store: Store, key: str, size: int) -> Header:
    front = store.head(key, min(size, HEADER_BYTES))
    declared = 8 + int.from_bytes(front[:8], "little")
    if len(front) < declared <= 8 + MAX_HEADER_BYTES:  # a larger one is refused unread
        front = store.head(key, min(size, declared))
    return read_header(front, size)


def _commit(tx: Transaction, job: Job, lease: Lease, checkpoint: Checkpoint, now: float) -> None:
    checkpoint.to(CheckpointState.COMMITTED)
    tx.checkpoints.save(checkpoint)
    job.advance(checkpoint, at=now)
    if lease.seconds_per_step is not None:
        job.timed(lease.seconds_per_step, gpu=lease.on_gpu)
    tx.jobs.save(job)
    lease.step = max(lease.step, checkpoint.step)
    lease.last_seen_at, lease.expires_at = now, max(lease.expires_at, now)
    tx.leases.save(lease)


def sweep(ctx: Context) -> None:
    """Delete the objects of checkpoints from which no job continues. A failed deletion is tried again next time.

    An object that several jobs share (a clone begins with its origin's) is deleted with the last of them.
    """
    silent: set[str] = set()
    with ctx.uow() as tx:
        going = [(c, tx.checkpoints.is_in_use(c.store, c.key)) for c in tx.checkpoints.undeleted()]
    for checkpoint, needed in going:
        if checkpoint.store in silent:
            continue
        try:
            if not needed:
                ctx.stores.get(checkpoint.store).delete(checkpoint.key)
        except StoreError:
            silent.add(checkpoint.store)
            continue
        with ctx.uow() as tx:
            # This locks the job. Otherwise `save` would overwrite a concurrent change of the checkpoint.
            tx.jobs.get(checkpoint.job_id)
            current = tx.checkpoints.get(checkpoint.job_id, checkpoint.sha256)
            if current is not None:
                current.key = ""
                tx.checkpoints.save(current)


def sweep_strays(ctx: Context, lease: Lease) -> bool:
    """Delete what an ended lease uploaded and never offered (a damaged upload, or one before a crash).

    Files that were staged for its machine to read are deleted, too. Returns False if a backup reads the store now.
    """
    try:
        model_files.sweep(ctx, lease)
        store = ctx.stores.get(lease.store)
        lying = store.keys(lease_prefix(lease))
        if not lying:
            return True
        with ctx.uow() as tx:
            job = tx.jobs.get(lease.job_id)
            used = {c.key for c in tx.checkpoints.of_job(lease.job_id)}
            used |= {key for key in lying if tx.checkpoints.is_in_use(lease.store, key)}
            export = tx.machine_exports.get(lease.job_id)
            used |= set((export.keys or {}).values()) if export is not None else set()
        for key in lying:
            if key not in used and (job is None or key != job.adapter_key):
                store.delete(key)
    except StoreBusy:
        return False
    except StoreError:
        return True
    return True


def abandon_stale(ctx: Context) -> None:
    """Mark offers as garbage that were not committed in time.

    Those of a live session stay, because the session may still be waiting for its store to answer.
    """
    with ctx.uow() as tx:
        for checkpoint in tx.checkpoints.stale_offers(ctx.clock.now() - ctx.limits.offer_ttl_s):
            lease = tx.leases.get(checkpoint.lease_id)
            if lease is not None and lease.state.is_live:
                continue
            checkpoint.to(CheckpointState.ABANDONED)
            tx.checkpoints.save(checkpoint)
    sweep(ctx)
