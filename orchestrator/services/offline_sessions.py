"""Machines that cannot call: what they need to work alone, and whether the server must stop them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from orchestrator.domain.errors import NotFoundError
from orchestrator.domain.jobs import Checkpoint, Job, Lease
from orchestrator.domain.storage import Dataset
from orchestrator.ports.repository import Transaction
from orchestrator.ports.stores import Store
from orchestrator.services import model_files
from orchestrator.services.assignments import adapter_of, describe_job, result_of, upload_grant
from orchestrator.services.context import Context
from orchestrator.services.leases import trained_job
from worker.shared.job_spec import JobSpec
from worker.shared.messages import Assignment, Grant, GrantKind

SPARE_UPLOADS = 4
RESULT_UPLOADS = 2
EXPORT_UPLOADS = 24
"""Files of an export with an upload of their own. The machine keeps any others for its provider to collect."""


@dataclass(frozen=True, kw_only=True)
class OfflineBundle:
    """All that a machine needs to work alone.

    `inputs` holds the files that it reads, by grant key, for the driver to copy to the machine.
    """

    assignment: Assignment
    inputs: Mapping[str, Callable[[], Iterator[bytes]]]


def offline_bundle(ctx: Context, lease: Lease) -> OfflineBundle:
    """Everything for one session. It opens uploads at the store, so it must not run in a transaction.

    Raises `StoreError`, and `ConflictError` if the lease was ended because its model is not available.

    A folder of this server takes no uploads from a machine that cannot call. Then there are no upload grants, and the
    worker keeps its files for the provider to collect.
    """
    with ctx.uow() as tx:
        job, datasets, head = _what_to_read(tx, lease)
        spec = JobSpec.model_validate(job.spec)
        trained = trained_job(tx, spec)
    local = ctx.stores.local()
    inputs: dict[str, Callable[[], Iterator[bytes]]] = {}

    def reading(store: Store, key: str, kind: GrantKind, sha256: str, size: int) -> Grant:
        inputs[key] = lambda: store.read(key)
        return Grant(key=key, kind=kind, sha256=sha256, size=size)

    data = tuple(reading(local, d.key, GrantKind.DATASET, d.sha256, d.size) for d in datasets)
    if trained is not None:
        data = (reading(ctx.stores.get(trained.adapter_store or ""), *adapter_of(trained)),)
    resume = None
    if head is not None:
        resume = reading(ctx.stores.get(head.store), head.key, GrantKind.CHECKPOINT, head.sha256, head.size)
    models = model_files.staged(ctx, lease, spec, inputs)
    uploads = _uploads(ctx, lease, spec) if lease.store != local.name else ()
    left = lease.budget_s
    assignment = describe_job(ctx, lease, job, spec, left, head=head, datasets=data, resume=resume, uploads=uploads)
    return OfflineBundle(assignment=assignment.model_copy(update=models), inputs=inputs)


def _what_to_read(tx: Transaction, lease: Lease) -> tuple[Job, list[Dataset], Checkpoint | None]:
    job = tx.jobs.get(lease.job_id)
    if job is None:
        raise NotFoundError(f"There is no job {lease.job_id}.")
    datasets = [tx.datasets.get(d.sha256 or "") for d in JobSpec.model_validate(job.spec).files]
    return job, [d for d in datasets if d is not None], tx.checkpoints.get(job.id, job.head) if job.head else None


def _uploads(ctx: Context, lease: Lease, spec: JobSpec) -> tuple[Grant, ...]:
    """Upload grants for a save every `max_interval_s`, up to a limit. The machine cannot request more later."""
    store = ctx.stores.get(lease.store)
    saves = min(ctx.limits.most_uploads, math.ceil(lease.budget_s / spec.checkpoint.max_interval_s) + SPARE_UPLOADS)
    kinds = [GrantKind.CHECKPOINT] * saves + [result_of(spec)] * RESULT_UPLOADS
    if spec.export is not None:  # it has no checkpoints, and several files
        kinds = [GrantKind.EXPORT] * EXPORT_UPLOADS
    return tuple(upload_grant(store, lease, kind, shares_disk=False) for kind in kinds)


def is_to_be_stopped(ctx: Context, lease: Lease) -> bool:
    """Whether a person has requested the end of this session.

    A cancel ends it at once. A pause ends it as soon as a checkpoint is committed.
    """
    with ctx.uow() as tx:
        job = tx.jobs.get(lease.job_id)
        head = tx.checkpoints.get(job.id, job.head) if job is not None and job.head is not None else None
    if job is None or job.cancel_requested_at is not None:
        return job is not None
    requested_at = job.pause_requested_at
    return (
        requested_at is not None and head is not None and head.lease_id == lease.id and head.created_at >= requested_at
    )
