"""Removing a job that has ended, with everything it left behind."""

from __future__ import annotations

import contextlib

from orchestrator.domain.errors import ConflictError
from orchestrator.domain.lifecycle import CheckpointState
from orchestrator.domain.model import Job, Lease
from orchestrator.ports.providers import Context, ProviderError, StoreError
from orchestrator.ports.repository import Transaction
from orchestrator.services.checkpoints import sweep
from orchestrator.services.errors import from_store
from orchestrator.services.jobs import Actor, owned
from orchestrator.services.reconcile import handle_of


def delete(ctx: Context, actor: Actor, job_id: str) -> None:
    """Remove an ended job, its checkpoints, adapter, curves, samples and logs; for everybody, and for good.

    A clone keeps the checkpoint that it began with. What stays are the hours its sessions used and the events that say what
    happened. Raises `ConflictError` while the job, or what one of its machines left, may still be needed, and
    `UnavailableError` if the store does not answer; both leave the job as it is.
    """
    with ctx.uow() as tx:
        job = _ended(tx, actor, job_id)
    _delete_adapter(ctx, job)
    with ctx.uow() as tx:
        job = _ended(tx, actor, job_id)
        leases = tx.leases_of(job_id)
        for checkpoint in tx.checkpoints(job_id, CheckpointState.COMMITTED):
            checkpoint.to(CheckpointState.PRUNED)
            tx.save_checkpoint(checkpoint)
        job.delete(at=ctx.clock.now(), actor=actor.name)
        tx.save_job(job)
        tx.forget_records(job_id)
    sweep(ctx)
    for lease in leases:
        _erase_log(ctx, lease)


def _ended(tx: Transaction, actor: Actor, job_id: str) -> Job:
    job = owned(tx, actor, job_id)
    if not job.state.is_final:
        raise ConflictError(f"job {job_id} is {job.state}: cancel it before you delete it")
    if any(lease.collected_at is None for lease in tx.leases_of(job_id)):
        raise ConflictError(f"the last machine of job {job_id} is still being cleared up; try again in a minute")
    return job


def _delete_adapter(ctx: Context, job: Job) -> None:
    if job.adapter_key is None or job.adapter_store is None:
        return
    try:
        ctx.stores.get(job.adapter_store).delete(job.adapter_key)
    except StoreError as error:
        raise from_store(error) from error


def _erase_log(ctx: Context, lease: Lease) -> None:
    with contextlib.suppress(ProviderError):
        ctx.providers.get(lease.provider).erase(handle_of(lease, {}))
