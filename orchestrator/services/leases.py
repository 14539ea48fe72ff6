"""The life of a lease as the worker sees it: start, report, ask for grants, say goodbye or finish."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from orchestrator.domain.errors import ConflictError, InvalidError, NotFoundError, StaleFenceError
from orchestrator.domain.lifecycle import EndReason, JobState, LeaseState
from orchestrator.domain.model import Checkpoint, Job, Lease
from orchestrator.ports.providers import Context, ObjectMissing, Store, StoreError
from orchestrator.ports.repository import Dataset, Transaction
from orchestrator.services import model_files
from orchestrator.services.errors import from_store
from orchestrator.services.failed_starts import close, weigh
from orchestrator.services.heads import is_damaged, roll_back_head
from orchestrator.services.images import note_image
from orchestrator.services.step_time import first_step_time
from worker.shared import causes
from worker.shared.messages import (
    PROTOCOL_VERSION,
    Action,
    Assignment,
    Directive,
    Failure,
    Finish,
    Grant,
    GrantKind,
    JobSpec,
    Origin,
    Release,
    Report,
    Started,
    StartRequest,
)

UPLOADS_IN_ADVANCE = 3
"""Grants handed out at start, so that a worker can save while the server is away."""

_RELEASES = {
    "deadline": EndReason.HANDED_OFF,
    "drained": EndReason.HANDED_OFF,
    "paused": EndReason.PAUSED,
    "cancelled": EndReason.CANCELLED,
    "unfit": EndReason.UNFIT,
}


def held(tx: Transaction, lease_id: str, fence: int | None = None) -> tuple[Lease, Job]:
    """The lease and its job if `fence` (or else the lease's own) counts; raises `StaleFenceError` or `NotFoundError`."""
    return _still_held(tx, _lease(tx, lease_id), fence)


def _lease(tx: Transaction, lease_id: str) -> Lease:
    lease = tx.lease(lease_id)
    if lease is None:
        raise NotFoundError(f"there is no lease {lease_id}")
    return lease


def _still_held(tx: Transaction, lease: Lease, fence: int | None) -> tuple[Lease, Job]:
    job = tx.job(lease.job_id)
    if job is None:
        raise NotFoundError(f"there is no job {lease.job_id}")
    if fence is not None and lease.fence != fence:
        raise StaleFenceError(f"lease {lease.id} has fence {lease.fence}, not {fence}: stop")
    lease.guard()
    job.guard(lease.fence)
    return lease, job


@dataclass(frozen=True, kw_only=True)
class Begun:
    """What a worker that has started is to be told."""

    lease: Lease
    job: Job
    spec: JobSpec
    head: Checkpoint | None
    datasets: list[Dataset | None]


def start(ctx: Context, lease_id: str, request: StartRequest) -> Assignment:
    """A worker is up: hand it the job. Repeating the call with the same nonce gives the same answer."""
    with ctx.uow() as tx:
        begun = begin(ctx, tx, lease_id, request)
    return assignment(ctx, begun)


def started(ctx: Context, said: Started) -> None:
    """A worker that was launched with its assignment has begun."""
    with ctx.uow() as tx:
        held(tx, said.lease, said.fence)
        begin(ctx, tx, said.lease, said.request)


def begin(ctx: Context, tx: Transaction, lease_id: str, request: StartRequest) -> Begun:
    """The part of `start` that writes."""
    if request.protocol != PROTOCOL_VERSION:
        raise InvalidError(
            f"this worker speaks protocol {request.protocol}, the server {PROTOCOL_VERSION}: install the same trainhop"
        )
    now = ctx.clock.now()
    lease, job = held(tx, lease_id)
    if lease.nonce is not None and lease.nonce != request.nonce:
        raise ConflictError(f"lease {lease_id} was started by another process: stop")
    spec = JobSpec.model_validate(job.spec)
    if lease.nonce is None:
        _begin(lease, job, request, now)
        if lease.offline:  # its time runs from when the machine began, which may be long after the launch
            lease.deadline_at = now + lease.budget_s + ctx.limits.stop_grace_s
        note_image(tx, lease, job, request.image, now)
        tx.save_job(job)
    lease.last_seen_at, lease.expires_at = now, now + ctx.limits.lease_s
    tx.save_lease(lease)
    head = tx.checkpoint(job.id, job.head) if job.head else None
    datasets = [tx.dataset(d.sha256 or "") for d in spec.datasets]
    return Begun(lease=lease, job=job, spec=spec, head=head, datasets=datasets)


def assignment(ctx: Context, begun: Begun) -> Assignment:
    """The job in the worker's words, with grants for everything that it reads and writes."""
    lease, job, spec = begun.lease, begun.job, begun.spec
    try:
        downloads, resume, uploads = _all_grants(ctx, lease, begun.datasets, begun.head)
        model = model_files.granted(ctx, lease, spec)
    except StoreError as error:
        raise from_store(error) from error
    left = max(0.0, lease.created_at + lease.budget_s - ctx.clock.now())
    found = begun.head
    said = say_assignment(ctx, lease, job, spec, left, head=found, datasets=downloads, resume=resume, uploads=uploads)
    return said.model_copy(update={"model": model})


def say_assignment(
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
    """The job in the worker's words, with the grants that were opened for it."""
    return Assignment(
        job=job.id,
        lease=lease.id,
        fence=lease.fence,
        spec=spec,
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
    """Whose checkpoint the head is, where it is not the job's own; told, so that no other is ever accepted."""
    if head is None or head.manifest["job"] == job.id:
        return None
    return Origin(job=head.manifest["job"], fence=head.manifest["fence"], step=head.step)


def _all_grants(
    ctx: Context, lease: Lease, datasets: list[Dataset | None], head: Checkpoint | None
) -> tuple[tuple[Grant, ...], Grant | None, tuple[Grant, ...]]:
    """Data to read, the checkpoint to go on from, and places to write to."""
    shares_disk = ctx.providers.get(lease.provider).capabilities.shares_disk
    store = ctx.stores.get(lease.store)

    def reading(store: Store, key: str, kind: GrantKind, sha256: str, size: int) -> Grant:
        return store.grant_download(key, kind, sha256=sha256, size=size, shares_disk=shares_disk)

    data = [reading(ctx.stores.local(), d.key, GrantKind.DATASET, d.sha256, d.size) for d in datasets if d is not None]
    resume = None
    if head is not None:
        resume = reading(ctx.stores.get(head.store), head.key, GrantKind.CHECKPOINT, head.sha256, head.size)
    kinds = [GrantKind.CHECKPOINT] * UPLOADS_IN_ADVANCE + [GrantKind.ADAPTER]
    return tuple(data), resume, tuple(upload_grant(store, lease, kind, shares_disk=shares_disk) for kind in kinds)


def _begin(lease: Lease, job: Job, request: StartRequest, now: float) -> None:
    lease.nonce, lease.started_at = request.nonce, now
    lease.hardware = request.hardware.model_dump(mode="json")
    lease.first_step = lease.step = job.head_step
    lease.image, lease.detail = request.image, ""
    if lease.state is LeaseState.PROVISIONING:
        lease.to(LeaseState.ACTIVE)
    name = request.hardware.name or request.hardware.device
    job.to(JobState.RUNNING, reason=f"started on {name}", at=now, actor="worker", lease_id=lease.id)


def lease_prefix(lease: Lease) -> str:
    """The only folder this lease may write into: a zombie cannot touch its successor's files."""
    return f"jobs/{lease.job_id}/f{lease.fence}/"


def upload_grant(store: Store, lease: Lease, kind: GrantKind, *, shares_disk: bool) -> Grant:
    """Permission to write one new file in the lease's folder."""
    suffix = "zip" if kind is GrantKind.ADAPTER else "safetensors"
    return store.grant_upload(f"{lease_prefix(lease)}{secrets.token_hex(8)}.{suffix}", kind, shares_disk=shares_disk)


def grants(ctx: Context, lease_id: str, fence: int, kind: GrantKind, count: int) -> list[Grant]:
    """More upload grants for a lease that has used up its own."""
    if kind is GrantKind.DATASET:
        raise InvalidError("datasets are read, not written")
    with ctx.uow() as tx:
        lease, _ = held(tx, lease_id, fence)
    shares_disk = ctx.providers.get(lease.provider).capabilities.shares_disk
    try:
        store = ctx.stores.get(lease.store)
        return [upload_grant(store, lease, kind, shares_disk=shares_disk) for _ in range(count)]
    except StoreError as error:
        raise from_store(error) from error


def report(ctx: Context, said: Report) -> Directive:
    """Progress arrived: keep it, extend the lease, say what to do next. An old report adds only what is missing."""
    with ctx.uow() as tx:
        return reported(ctx, tx, said)


def reported(ctx: Context, tx: Transaction, said: Report) -> Directive:
    """`report` within a transaction."""
    now = ctx.clock.now()
    lease, job = held(tx, said.lease, said.fence)
    lease.last_seen_at, lease.expires_at = now, now + ctx.limits.lease_s
    is_new = said.seq > lease.last_seq
    tx.add_metrics(job.id, lease, said.metrics, now, replace=is_new)
    if is_new:
        first_step_time(tx, lease, job, said, now)
        _take_in(lease, said)
        tx.add_samples(job.id, said.samples, now)
        if said.reading is not None:
            tx.add_reading(lease.id, now, said.step, said.reading)
    tx.save_lease(lease)
    return directive(lease, job)


def _take_in(lease: Lease, said: Report) -> None:
    lease.last_seq = said.seq
    lease.step = max(lease.step, said.step)
    lease.phase = said.phase
    lease.ledger = {str(k): v for k, v in said.ledger.items()} or lease.ledger
    lease.seconds_per_step = said.seconds_per_step or lease.seconds_per_step
    lease.fidelity = said.fidelity or lease.fidelity
    lease.backend = said.backend or lease.backend


def directive(lease: Lease, job: Job) -> Directive:
    """What the worker of this lease is to do next."""
    if job.cancel_requested_at is not None:
        return Directive(action=Action.ABORT, reason="cancelled")
    if job.pause_requested_at is not None:
        return Directive(action=Action.DRAIN, reason="paused")
    if lease.state is LeaseState.DRAINING:
        return Directive(action=Action.DRAIN, reason="drained")
    return Directive(action=Action.CONTINUE)


def release(ctx: Context, said: Release) -> None:
    """A worker says goodbye before the job is done; the job is free at once."""
    now = ctx.clock.now()
    end = _RELEASES[said.reason]
    with ctx.uow() as tx:
        lease = _lease(tx, said.lease)
        if _already_ended(lease, said.fence, end):
            return
        lease, job = _still_held(tx, lease, said.fence)
        _last_words(lease, said.step, said.seq, {str(k): v for k, v in said.ledger.items()}, now)
        cause = causes.NO_STEP if said.reason == "deadline" else said.cause
        release_lease(tx, lease, job, LeaseState.RELEASED, end, detail=said.detail, at=now, actor="worker", cause=cause)
    ctx.wake()


def _already_ended(lease: Lease, fence: int, end: EndReason) -> bool:
    return lease.fence == fence and not lease.state.is_live and lease.end_reason is end


def _last_words(lease: Lease, step: int, seq: int, ledger: dict[str, float], now: float) -> None:
    lease.step, lease.last_seq, lease.last_seen_at = max(lease.step, step), max(lease.last_seq, seq), now
    lease.ledger = ledger or lease.ledger


def release_lease(
    tx: Transaction,
    lease: Lease,
    job: Job,
    state: LeaseState,
    end: EndReason,
    *,
    detail: str,
    at: float,
    actor: str,
    counts: bool = True,
    cause: str = "",
) -> None:
    """Close the lease and put its job where the reason says, in one transaction. See `Job.give_back` for `counts`.

    `cause` is what is said to have kept the session from its first step; it counts if there was none.
    """
    close(tx, lease, state, end, at=at, detail=detail, cause=cause)
    found = weigh(tx, lease, job, at, counts=counts)
    job.release(
        end,
        detail=lease.detail,
        at=at,
        actor=actor,
        lease_id=lease.id,
        retry_at=found.retry_at,
        counts=found.counts,
        cause=lease.cause,
        stop=found.stop,
    )
    tx.save_job(job)


def finish(ctx: Context, said: Finish) -> None:
    """The worker's last word: the job is done, or cannot go on there."""
    if said.failure is not None:
        _finish_failed(ctx, said, said.failure)
    else:
        _finish_done(ctx, said)
    ctx.wake()


def _finish_done(ctx: Context, said: Finish) -> None:
    adapter, now = said.adapter, ctx.clock.now()
    if adapter is None:
        raise InvalidError("a finished job needs its adapter", [("/adapter", "is missing")])
    with ctx.uow() as tx:
        lease = _lease(tx, said.lease)
        if _already_ended(lease, said.fence, EndReason.COMPLETED):
            return
        _still_held(tx, lease, said.fence)
    if not adapter.key.startswith(lease_prefix(lease)):
        raise InvalidError("the adapter lies outside this lease's folder", [("/adapter/key", "was not granted")])
    try:
        stored = ctx.stores.get(lease.store).stat(adapter.key)
    except ObjectMissing as error:
        raise InvalidError("the adapter was not uploaded", [("/adapter/key", "no such object")]) from error
    except StoreError as error:
        raise from_store(error) from error
    if (stored.sha256, stored.size) != (adapter.sha256, adapter.size):
        raise InvalidError("the stored adapter is not the one that was announced", [("/adapter/sha256", "differs")])
    with ctx.uow() as tx:
        lease, job = held(tx, said.lease, said.fence)
        if job.head_step < job.total_steps:
            raise ConflictError(f"only {job.head_step} of {job.total_steps} steps are committed")
        _last_words(lease, said.step, said.seq, {str(k): v for k, v in said.ledger.items()}, now)
        job.adapter_key, job.adapter_store, job.adapter_bytes = adapter.key, lease.store, adapter.size
        job.adapter_zip_sha256, job.adapter_sha256 = adapter.sha256, adapter.adapter_sha256
        lease.end(LeaseState.RELEASED, EndReason.COMPLETED, at=now)
        tx.save_lease(lease)
        job.succeed(at=now, lease_id=lease.id)
        tx.save_job(job)


def _finish_failed(ctx: Context, said: Finish, failure: Failure) -> None:
    corrupt = failure.bad_checkpoint is not None and _is_corrupt(ctx, said, failure.bad_checkpoint)
    with ctx.uow() as tx:
        failed(ctx, tx, said, failure, corrupt=corrupt)


def failed(ctx: Context, tx: Transaction, said: Finish, failure: Failure, *, corrupt: bool = False) -> None:
    """The part of `finish` that writes, for a session that failed; `corrupt` says that the head is damaged."""
    now = ctx.clock.now()
    lease = _lease(tx, said.lease)
    if _already_ended(lease, said.fence, EndReason.FAILED):
        return
    lease, job = _still_held(tx, lease, said.fence)
    _last_words(lease, said.step, said.seq, {str(k): v for k, v in said.ledger.items()}, now)
    goes_on, end = roll_back_head(tx, job, now) if corrupt else not failure.permanent, EndReason.FAILED
    if not goes_on:
        close(tx, lease, LeaseState.RELEASED, end, at=now, detail=failure.message, cause=failure.cause)
        job.fail(lease.detail, at=now, actor="worker", lease_id=lease.id)
        tx.save_job(job)
    else:
        words, why = failure.message, failure.cause
        release_lease(tx, lease, job, LeaseState.RELEASED, end, detail=words, at=now, actor="worker", cause=why)


def _is_corrupt(ctx: Context, said: Finish, sha256: str) -> bool:
    """Read the checkpoint back ourselves: a worker's word alone never throws a checkpoint away."""
    with ctx.uow() as tx:
        _, job = held(tx, said.lease, said.fence)
        checkpoint = tx.checkpoint(job.id, sha256)
    return checkpoint is not None and checkpoint.sha256 == job.head and is_damaged(ctx, checkpoint)
