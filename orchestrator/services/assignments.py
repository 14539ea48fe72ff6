"""What a worker gets for its session: the job, and grants for every file that it reads and writes."""

from __future__ import annotations

import secrets

from orchestrator.domain.errors import InvalidError
from orchestrator.domain.jobs import Checkpoint, Job, Lease
from orchestrator.ports.stores import Links, Store, StoreError
from orchestrator.services import model_files
from orchestrator.services.context import Context
from orchestrator.services.job_pinning import for_machines
from orchestrator.services.leases import Begun, held, lease_prefix
from orchestrator.services.read_grants import bound
from orchestrator.services.stores import from_store
from worker.shared.job_spec import JobSpec
from worker.shared.messages import Assignment, Grant, GrantKind, Origin

_SUFFIXES = {GrantKind.ADAPTER: "zip", GrantKind.ANSWERS: "jsonl", GrantKind.EXPORT: "bin"}
UPLOADS_IN_ADVANCE = 3
"""Number of upload grants at the start, so that a worker can save while the server is away."""


def make_assignment(ctx: Context, begun: Begun) -> Assignment:
    """The assignment of a worker that can call, with its first grants.

    It calls the store, so it must not run in a transaction.
    """
    lease, spec = begun.lease, begun.spec
    try:
        datasets, resume, uploads = _all_grants(ctx, begun)
        models = model_files.granted(ctx, lease, spec)
    except StoreError as error:
        raise from_store(error) from error
    seconds_left = max(0.0, lease.created_at + lease.budget_s - ctx.clock.now())
    made = describe_job(
        ctx, lease, begun.job, spec, seconds_left, head=begun.head, datasets=datasets, resume=resume, uploads=uploads
    )
    return made.model_copy(update=models)


def describe_job(
    ctx: Context,
    lease: Lease,
    job: Job,
    spec: JobSpec,
    seconds_left: float,
    *,
    head: Checkpoint | None,
    datasets: tuple[Grant, ...],
    resume: Grant | None,
    uploads: tuple[Grant, ...],
) -> Assignment:
    """The assignment, with the grants that were opened for it."""
    return Assignment(
        job=job.id,
        lease=lease.id,
        fence=lease.fence,
        spec=for_machines(spec),
        rendered_at=spec.rendered_at,
        seconds_left=seconds_left,
        report_every_s=ctx.limits.report_every_s,
        mtbf_s=ctx.limits.mtbf_s,
        datasets=datasets,
        resume=resume,
        resume_step=job.head_step,
        origin=_origin(job, head),
        uploads=uploads,
        trust_remote_code=spec.base_model.partition("@")[0] in ctx.limits.trusted_models,
    )


def _origin(job: Job, head: Checkpoint | None) -> Origin | None:
    """The job and checkpoint of origin if the head is not the job's own. The worker accepts no other checkpoint."""
    if head is None or head.manifest["job"] == job.id:
        return None
    return Origin(job=head.manifest["job"], fence=head.manifest["fence"], step=head.manifest["step"])


def _all_grants(ctx: Context, begun: Begun) -> tuple[tuple[Grant, ...], Grant | None, tuple[Grant, ...]]:
    """Grants for the datasets or the adapter of an export or a chat, for the head, and for uploads."""
    lease, head = begun.lease, begun.head
    shares_disk = ctx.providers.get(lease.provider).capabilities.shares_disk
    store = ctx.stores.get(lease.store)

    def reading(store: Store, key: str, kind: GrantKind, sha256: str, size: int) -> Grant:
        return bound(store.grant_download(key, kind, sha256=sha256, size=size, shares_disk=shares_disk), lease)

    local = ctx.stores.local()
    data = [reading(local, d.key, GrantKind.DATASET, d.sha256, d.size) for d in begun.datasets if d is not None]
    if (trained := begun.trained) is not None:
        data.append(reading(ctx.stores.get(trained.adapter_store or ""), *adapter_of(trained)))
    resume = None
    if head is not None:
        resume = reading(ctx.stores.get(head.store), head.key, GrantKind.CHECKPOINT, head.sha256, head.size)
    kinds = [GrantKind.CHECKPOINT] * UPLOADS_IN_ADVANCE + [result_of(begun.spec)]
    return tuple(data), resume, tuple(upload_grant(store, lease, kind, shares_disk=shares_disk) for kind in kinds)


def result_of(spec: JobSpec) -> GrantKind:
    """The kind of file that a job ends with."""
    if spec.export is not None:
        return GrantKind.EXPORT
    return GrantKind.ADAPTER if spec.evaluation is None else GrantKind.ANSWERS


def adapter_of(trained: Job) -> tuple[str, GrantKind, str, int]:
    """The key of a job's adapter, its kind, its sha256 and its size, to read it."""
    return trained.adapter_key or "", GrantKind.ADAPTER, trained.adapter_zip_sha256 or "", trained.adapter_bytes or 0


def upload_grant(store: Store, lease: Lease, kind: GrantKind, *, shares_disk: bool) -> Grant:
    """A grant to write one new file into the lease's folder."""
    return store.grant_upload(_new_key(lease, kind), kind, shares_disk=shares_disk)


def _new_key(lease: Lease, kind: GrantKind) -> str:
    return f"{lease_prefix(lease)}{secrets.token_hex(8)}.{_SUFFIXES.get(kind, 'safetensors')}"


def grants(
    ctx: Context, lease_id: str, fence: int, kind: GrantKind, count: int, *, through: Links | None = None
) -> list[Grant]:
    """More upload grants for a lease that has used its own.

    With `through`, the files are uploaded to this server at these links, because the store refuses its own addresses.
    """
    if kind is GrantKind.DATASET:
        raise InvalidError("Datasets cannot be written. Request another kind of grant.")
    with ctx.uow() as tx:
        lease, _ = held(tx, lease_id, fence)
    if through is not None:
        return [through.upload(_new_key(lease, kind), kind, lease.store) for _ in range(count)]
    shares_disk = ctx.providers.get(lease.provider).capabilities.shares_disk
    try:
        store = ctx.stores.get(lease.store)
        return [upload_grant(store, lease, kind, shares_disk=shares_disk) for _ in range(count)]
    except StoreError as error:
        raise from_store(error) from error
