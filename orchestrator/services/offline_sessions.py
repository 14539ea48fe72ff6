"""Machines that cannot call: what they are given to work alone, and whether they are to be stopped from outside."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from orchestrator.domain.errors import NotFoundError
from orchestrator.domain.model import Checkpoint, Job, Lease
from orchestrator.ports.providers import Context, Store
from orchestrator.ports.repository import Dataset, Transaction
from orchestrator.services import model_files
from orchestrator.services.leases import say_assignment, upload_grant
from worker.shared.messages import Assignment, Grant, GrantKind, JobSpec

SPARE_UPLOADS = 4
ADAPTER_UPLOADS = 2


@dataclass(frozen=True, kw_only=True)
class OfflineBundle:
    """All that a machine needs to work alone; `inputs` holds the files it reads, by grant key, for the driver to bring."""

    assignment: Assignment
    inputs: Mapping[str, Callable[[], Iterator[bytes]]]


def is_offline(ctx: Context, provider: str) -> bool:
    """Whether machines of this provider have no address at which they could reach this server."""
    return ctx.public_url is None and not ctx.providers.get(provider).capabilities.same_network


def offline_bundle(ctx: Context, lease: Lease) -> OfflineBundle:
    """Everything for one session. Opens uploads at the store, so not inside a transaction.

    Raises `StoreError`, and `ConflictError` where the lease was ended because its model cannot be had.

    A folder of this server takes no uploads from a machine that cannot call: then there are none, and the worker keeps
    its files for the provider to hand over.
    """
    with ctx.uow() as tx:
        job, datasets, head = _what_to_read(tx, lease)
    local = ctx.stores.local()
    inputs: dict[str, Callable[[], Iterator[bytes]]] = {}

    def reading(store: Store, key: str, kind: GrantKind, sha256: str, size: int) -> Grant:
        inputs[key] = lambda: store.read(key)
        return Grant(key=key, kind=kind, sha256=sha256, size=size)

    data = tuple(reading(local, d.key, GrantKind.DATASET, d.sha256, d.size) for d in datasets)
    resume = None
    if head is not None:
        resume = reading(ctx.stores.get(head.store), head.key, GrantKind.CHECKPOINT, head.sha256, head.size)
    spec = JobSpec.model_validate(job.spec)
    model = model_files.staged(ctx, lease, spec, inputs)
    uploads = _uploads(ctx, lease, spec) if lease.store != local.name else ()
    left = lease.budget_s
    assignment = say_assignment(ctx, lease, job, spec, left, head=head, datasets=data, resume=resume, uploads=uploads)
    return OfflineBundle(assignment=assignment.model_copy(update={"model": model}), inputs=inputs)


def _what_to_read(tx: Transaction, lease: Lease) -> tuple[Job, list[Dataset], Checkpoint | None]:
    job = tx.job(lease.job_id)
    if job is None:
        raise NotFoundError(f"there is no job {lease.job_id}")
    found = [tx.dataset(d["sha256"]) for d in job.spec["datasets"]]
    return job, [d for d in found if d is not None], tx.checkpoint(job.id, job.head) if job.head else None


def _uploads(ctx: Context, lease: Lease, spec: JobSpec) -> tuple[Grant, ...]:
    """Nobody can be asked for more later: enough for a save every `max_interval_s`, within reason."""
    store = ctx.stores.get(lease.store)
    saves = min(ctx.limits.most_uploads, math.ceil(lease.budget_s / spec.checkpoint.max_interval_s) + SPARE_UPLOADS)
    kinds = [GrantKind.CHECKPOINT] * saves + [GrantKind.ADAPTER] * ADAPTER_UPLOADS
    return tuple(upload_grant(store, lease, kind, shares_disk=False) for kind in kinds)


def is_to_be_stopped(ctx: Context, lease: Lease) -> bool:
    """Whether a person wants this session to end: at once for a cancel, for a pause as soon as something was committed."""
    with ctx.uow() as tx:
        job = tx.job(lease.job_id)
        head = tx.checkpoint(job.id, job.head) if job is not None and job.head is not None else None
    if job is None or job.cancel_requested_at is not None:
        return job is not None
    asked = job.pause_requested_at
    return asked is not None and head is not None and head.lease_id == lease.id and head.created_at >= asked
