"""From an uploaded file to the job's head, and from an old checkpoint to free space."""

from __future__ import annotations

import re

from orchestrator.domain.errors import NotFoundError, StaleFenceError
from orchestrator.domain.lifecycle import CheckpointState
from orchestrator.domain.model import Checkpoint, Job, Lease
from orchestrator.domain.scheduling import prune
from orchestrator.ports.providers import Context, ObjectMissing, Store, StoreError
from orchestrator.ports.repository import Transaction
from orchestrator.services import model_files
from orchestrator.services.errors import from_store
from orchestrator.services.leases import held, lease_prefix
from worker.shared.checkpoint_file import MAX_HEADER_BYTES, CheckpointError, read_manifest
from worker.shared.messages import JobSpec, Manifest, Offer, OfferReply, Recipe

_ACCEPTED = frozenset({CheckpointState.COMMITTED, CheckpointState.PRUNED})
HEADER_BYTES = 4 << 20
"""Read from the front of a stored checkpoint to compare its manifest; larger headers are read whole."""


def offer(ctx: Context, said: Offer) -> OfferReply:
    """Commit a checkpoint: verify it where it lies, then make it the head if it continues the head.

    Repeating an offer is harmless. A refusal says why in words and leaves the head as it is.
    """
    now = ctx.clock.now()
    with ctx.uow() as tx:
        lease, job = held(tx, said.lease, said.fence)
        known = tx.checkpoint(job.id, said.sha256)
        if known is not None and known.state in _ACCEPTED:
            return OfferReply(committed=True)
        seen = known is not None and known.state is not CheckpointState.OFFERED
        refusal = "this checkpoint was refused before" if seen else _refusal(said, lease, job)
        if refusal:
            return _refuse(tx, job, lease, said, refusal, now)
        store = ctx.stores.get(lease.store)
        if known is None:
            tx.add_checkpoint(_offered(said, lease, store.name, now))
    refusal = _read_back(store, said)
    with ctx.uow() as tx:
        lease, job = held(tx, said.lease, said.fence)
        checkpoint = tx.checkpoint(job.id, said.sha256)
        if checkpoint is None:
            raise NotFoundError(f"offer {said.sha256[:12]} was forgotten: offer it again")
        if checkpoint.state in _ACCEPTED:  # by the same offer, sent again while this one read
            return OfferReply(committed=True)
        refusal = refusal or _refusal(said, lease, job)
        if refusal:
            checkpoint.to(CheckpointState.ABANDONED)
            tx.save_checkpoint(checkpoint)
            return _refuse(tx, job, lease, said, refusal, now)
        _commit(tx, job, lease, checkpoint, now)
        pruned = _prune(tx, job)
    if pruned:
        sweep(ctx)
    return OfferReply(committed=True)


def require_open(ctx: Context, key: str) -> None:
    """Raise `StaleFenceError` unless the lease that this key was granted to is still live: its folder is closed with it."""
    named = re.fullmatch(r"jobs/([^/]+)/f(\d+)/[^/]+", key)
    with ctx.uow() as tx:
        lease = tx.live_lease(named[1]) if named else None
    if named is None or lease is None or lease.fence != int(named[2]):
        raise StaleFenceError(f"the lease that {key} was granted to is over: stop")


def _refuse(tx: Transaction, job: Job, lease: Lease, said: Offer, refusal: str, now: float) -> OfferReply:
    job.note("checkpoint.refused", at=now, actor="server", lease_id=lease.id, reason=refusal, step=said.manifest.step)
    tx.save_job(job)
    return OfferReply(committed=False, refusal=refusal)


def _offered(said: Offer, lease: Lease, store: str, now: float) -> Checkpoint:
    return Checkpoint(
        sha256=said.sha256,
        job_id=lease.job_id,
        lease_id=lease.id,
        fence=lease.fence,
        step=said.manifest.step,
        parent=said.manifest.parent,
        key=said.key,
        size=said.size,
        store=store,
        manifest=said.manifest.model_dump(mode="json", exclude={"state"}),
        created_at=now,
    )


def _refusal(said: Offer, lease: Lease, job: Job) -> str:
    """Why this checkpoint cannot become the head, or nothing."""
    manifest = said.manifest
    if not said.key.startswith(lease_prefix(lease)):
        return f"object {said.key} was not granted to this lease"
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


def _read_back(store: Store, said: Offer) -> str:
    """Compare the stored object with what was announced; raises `UnavailableError` if the store does not answer."""
    try:
        stored = store.stat(said.key)
        if (stored.sha256, stored.size) != (said.sha256, said.size):
            return f"stored {stored.size} bytes with sha256 {stored.sha256[:12]}, announced {said.size} with {said.sha256[:12]}"
        manifest = _stored_manifest(store, said)
    except ObjectMissing:
        return f"nothing is stored under {said.key}"
    except CheckpointError as error:
        return str(error)
    except StoreError as error:
        raise from_store(error) from error
    return "" if manifest == said.manifest else "the manifest in the file is not the one that was announced"


def _stored_manifest(store: Store, said: Offer) -> Manifest:
    front = store.head(said.key, min(said.size, HEADER_BYTES))
    declared = 8 + int.from_bytes(front[:8], "little")
    if len(front) < declared <= 8 + MAX_HEADER_BYTES:  # a larger one is refused, not read
        front = store.head(said.key, min(said.size, declared))
    return read_manifest(front)


def _commit(tx: Transaction, job: Job, lease: Lease, checkpoint: Checkpoint, now: float) -> None:
    checkpoint.to(CheckpointState.COMMITTED)
    tx.save_checkpoint(checkpoint)
    job.advance(checkpoint, at=now)
    if lease.seconds_per_step is not None:
        job.timed(lease.seconds_per_step, gpu=lease.on_gpu)
    tx.save_job(job)
    lease.step = max(lease.step, checkpoint.step)
    lease.last_seen_at, lease.expires_at = now, max(lease.expires_at, now)
    tx.save_lease(lease)


def _prune(tx: Transaction, job: Job) -> bool:
    """Mark what the job no longer needs; whether there was any."""
    committed = tx.checkpoints(job.id, CheckpointState.COMMITTED)
    keep = job.spec["checkpoint"]["keep"]
    going = set(prune([(c.sha256, c.step) for c in committed], job.head, keep))
    for checkpoint in committed:
        if checkpoint.sha256 in going:
            checkpoint.to(CheckpointState.PRUNED)
            tx.save_checkpoint(checkpoint)
    return bool(going)


def sweep(ctx: Context) -> None:
    """Delete the objects of checkpoints that nobody goes on from; what fails is tried again next time.

    The last job that counts on an object takes it along: a clone begins with its origin's.
    """
    silent: set[str] = set()
    with ctx.uow() as tx:
        going = [(c, tx.is_in_use(c.store, c.key)) for c in tx.undeleted_checkpoints()]
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
            tx.job(checkpoint.job_id)  # locked: what others write of the checkpoint while its object goes must stay
            current = tx.checkpoint(checkpoint.job_id, checkpoint.sha256)
            if current is not None:
                current.key = ""
                tx.save_checkpoint(current)


def sweep_strays(ctx: Context, lease: Lease) -> None:
    """Delete what a lease that is over has uploaded and never offered (a damaged upload, one before a crash).

    What was laid out for its machine to read goes, too.
    """
    model_files.sweep(ctx, lease)
    store = ctx.stores.get(lease.store)
    try:
        lying = store.keys(lease_prefix(lease))
        if not lying:
            return
        with ctx.uow() as tx:
            job = tx.job(lease.job_id)
            used = {c.key for c in tx.checkpoints(lease.job_id)}
            used |= {key for key in lying if tx.is_in_use(lease.store, key)}
        for key in lying:
            if key not in used and (job is None or key != job.adapter_key):
                store.delete(key)
    except StoreError:
        return


def abandon_stale(ctx: Context) -> None:
    """Offers that nobody commits any more become garbage; a session that lives may still be waiting for its store to answer."""
    with ctx.uow() as tx:
        for checkpoint in tx.stale_offers(ctx.clock.now() - ctx.limits.offer_ttl_s):
            lease = tx.lease(checkpoint.lease_id)
            if lease is not None and lease.state.is_live:
                continue
            checkpoint.to(CheckpointState.ABANDONED)
            tx.save_checkpoint(checkpoint)
    sweep(ctx)
