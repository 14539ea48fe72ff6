"""What people do with jobs: submit, pause, resume, cancel, retry, set priority."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.domain.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError
from orchestrator.domain.lifecycle import EndReason, JobState, LeaseState
from orchestrator.domain.model import Checkpoint, Job, Role
from orchestrator.ports.providers import Context
from orchestrator.ports.repository import Transaction
from orchestrator.services.datasets import hold, resolve_dataset
from orchestrator.services.dispatch import list_capacity
from orchestrator.services.hub_tokens import token_of
from orchestrator.services.ids import new_id
from orchestrator.services.leases import release_lease
from worker.shared import memory_estimate
from worker.shared.memory_estimate import Need
from worker.shared.messages import JobSpec

LAST_DEADLINE = 253_402_300_800.0
"""The year 10000, which no calendar of ours can say."""


@dataclass(frozen=True, kw_only=True)
class Actor:
    """Who asks, as the token says."""

    member_id: str
    name: str
    role: Role

    def may_see(self, member_id: str) -> bool:
        """Members see their own, admins everything."""
        return self.role is Role.ADMIN or self.member_id == member_id


def submit(ctx: Context, actor: Actor, spec: JobSpec, *, key: str | None = None) -> Job:
    """Queue a job. With an idempotency `key`, the same request again returns the same job and another one is refused."""
    ready = prepare(ctx, actor, spec, key=key)
    if isinstance(ready, Job):
        return ready
    with ctx.uow() as tx:
        job = queue(ctx, tx, actor, ready)
    ctx.wake()
    return job


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A job file with everything pinned, ready to be queued."""

    spec: JobSpec
    as_json: dict[str, Any]
    need: Need
    key: str | None
    asked: str


def prepare(ctx: Context, actor: Actor, spec: JobSpec, *, key: str | None = None, of: str = "") -> Ready | Job:
    """The part of `submit` that looks things up and may take long; the job itself if it was queued before.

    `of` is what else makes two requests different, besides the file.
    """
    if spec.priority > 0:
        _may_go_first(actor)
    asked = hashlib.sha256((spec.model_dump_json() + of).encode()).hexdigest()
    if key is not None and (again := _earlier(ctx, actor, key, asked)) is not None:
        return again
    resolved, need = resolve(ctx, actor, spec)
    return Ready(
        spec=resolved,
        as_json=resolved.model_dump(mode="json"),
        need=need,
        key=key,
        asked=asked,
    )


def queue(
    ctx: Context,
    tx: Transaction,
    actor: Actor,
    ready: Ready,
    *,
    cloned_from: str | None = None,
    begin: Checkpoint | None = None,
) -> Job:
    """The part of `submit` that writes; `begin` is the checkpoint of `cloned_from` that a clone goes on from."""
    now, resolved = ctx.clock.now(), ready.spec
    if tx.hold_member(actor.member_id) is None:
        raise ForbiddenError("you are no longer a member of this server")
    gone = hold(tx, (d.sha256 or "" for d in resolved.datasets))  # since they were looked up
    if gone is not None:
        raise InvalidError(gone[1], [(f"/datasets/{gone[0]}/path", gone[1])])
    job = Job(
        id=new_id("job", now),
        member_id=actor.member_id,
        name=resolved.name,
        spec=ready.as_json,
        total_steps=resolved.total_steps,
        priority=resolved.priority,
        deadline=resolved.deadline,
        gpu_bytes=ready.need.gpu_bytes,
        host_bytes=ready.need.host_bytes,
        cloned_from=cloned_from,
        head=begin.sha256 if begin else None,
        head_step=begin.step if begin else 0,
        first_step=begin.step if begin else 0,
        created_at=now,
        updated_at=now,
    )
    lineage: dict[str, Any] = {"cloned_from": cloned_from, "from_step": job.first_step} if cloned_from else {}
    job.note("job.submitted", at=now, actor=actor.name, steps=job.total_steps, **lineage)
    if ready.key is not None:
        tx.remember(actor.member_id, ready.key, ready.asked, {"job": job.id}, now)
    tx.add_job(job)
    if begin is not None:
        tx.add_checkpoint(replace(begin, job_id=job.id, parent=None, created_at=now))  # this job's chain begins here
    return job


def _earlier(ctx: Context, actor: Actor, key: str, asked: str) -> Job | None:
    with ctx.uow() as tx:
        earlier = tx.remembered(actor.member_id, key)
        if earlier is None:
            return None
        if earlier[0] != asked:
            raise ConflictError("this Idempotency-Key was used for a different request; choose a new one")
        job = tx.job(earlier[1]["job"])
        if job is not None and job.deleted_at is not None:
            raise ConflictError("the job of this Idempotency-Key was deleted; choose a new one")
        return job


def resolve(ctx: Context, actor: Actor, spec: JobSpec) -> tuple[JobSpec, Need]:
    """The spec with everything pinned that may not change later, and the memory it needs."""
    if spec.deadline is not None and not 0 <= spec.deadline < LAST_DEADLINE:
        raise InvalidError("the deadline is no date", [("/deadline", "must be a time before the year 10000")])
    _refuse_the_unknown(ctx, spec)
    model = ctx.catalog.model(spec.base_model, token_of(ctx, actor.member_id))
    datasets = tuple(resolve_dataset(ctx, actor.member_id, d, place) for place, d in enumerate(spec.datasets))
    pinned = spec.model_copy(update={"base_model": model.name, "datasets": datasets})
    if pinned.train_rows < 1:
        raise InvalidError("nothing is left to train on", [("/val_set_size", "takes every row of the data")])
    needed = memory_estimate.need(pinned, model.shape, model.parameters)
    _refuse_the_too_large(ctx, actor, needed)
    return pinned.model_copy(update={"max_steps": pinned.total_steps, "num_epochs": None}), needed


def _refuse_the_unknown(ctx: Context, spec: JobSpec) -> None:
    """A job that asks for a provider nobody has heard of would wait for ever."""
    known = sorted(entry.name for entry in ctx.providers.entries())
    for place, name in enumerate(spec.placement.providers):
        if name not in known:
            words = f"there is no provider {name}: one of {', '.join(known)}"
            raise InvalidError(words, [(f"/placement/providers/{place}", words)])


def _refuse_the_too_large(ctx: Context, actor: Actor, need: Need) -> None:
    with ctx.uow() as tx:
        accounts = tx.accounts()
    places = list_capacity(ctx, [a for a in accounts if a.member_id in (None, actor.member_id)])
    if not places or any(not p.memory_bytes or need.on(gpu=p.gpu) <= p.memory_bytes for p in places):
        return
    largest = max(places, key=lambda place: place.memory_bytes)
    raise InvalidError(
        "the base model does not fit on any machine",
        [
            (
                "/base_model",
                (
                    f"needs about {need.on(gpu=largest.gpu) / 2**30:.1f} GiB, the largest machine has "
                    f"{largest.memory_bytes / 2**30:.1f}; "
                    "choose a smaller model, adapter: qlora, or a shorter sequence_len"
                ),
            )
        ],
    )


def owned(tx: Transaction, actor: Actor, job_id: str) -> Job:
    """The job if the actor may see it; otherwise it does not exist for them."""
    job = tx.job(job_id)
    if job is None or job.deleted_at is not None or not actor.may_see(job.member_id):
        raise NotFoundError(f"there is no job {job_id}")
    return job


def pause(ctx: Context, actor: Actor, job_id: str) -> Job:
    """Stop at the next step's end with everything saved; a queued job just leaves the queue."""
    now = ctx.clock.now()
    with ctx.uow() as tx:
        job = owned(tx, actor, job_id)
        if job.state is JobState.QUEUED:
            job.to(JobState.PAUSED, reason="paused on request", at=now, actor=actor.name)
        elif job.state.holds_lease and job.pause_requested_at is None:
            job.pause_requested_at = now
            job.note("job.pause_requested", at=now, actor=actor.name)
        elif job.state.is_final:
            raise ConflictError(f"job {job_id} is {job.state}: there is nothing to pause")
        tx.save_job(job)
        return job


def resume(ctx: Context, actor: Actor, job_id: str) -> Job:
    """Queue a paused job again, or take back a pause that has not happened yet."""
    now = ctx.clock.now()
    with ctx.uow() as tx:
        job = owned(tx, actor, job_id)
        if job.state is JobState.PAUSED:
            job.queue_again(at=now, actor=actor.name, reason="resumed on request")
        elif job.pause_requested_at is not None:
            job.pause_requested_at = None
            job.note("job.pause_withdrawn", at=now, actor=actor.name)
        else:
            raise ConflictError(f"job {job_id} is {job.state}, not paused")
        tx.save_job(job)
    ctx.wake()
    return job


def hand_over(ctx: Context, actor: Actor, job_id: str) -> Job:
    """Have the running session save and leave, so that the job goes on at the next free machine."""
    now = ctx.clock.now()
    with ctx.uow() as tx:
        job = owned(tx, actor, job_id)
        lease = tx.live_lease(job.id)
        if lease is None or lease.state is LeaseState.PROVISIONING:
            raise ConflictError(f"job {job_id} is {job.state}: no machine works on it that could hand it over")
        if lease.state is LeaseState.ACTIVE:
            lease.to(LeaseState.DRAINING)
            tx.save_lease(lease)
            job.note("job.handover_requested", at=now, actor=actor.name, lease_id=lease.id)
            tx.save_job(job)
        return job


def cancel(ctx: Context, actor: Actor, job_id: str) -> Job:
    """End the job; a machine that runs it is told to stop and, if it does not listen, ended."""
    now = ctx.clock.now()
    with ctx.uow() as tx:
        job = owned(tx, actor, job_id)
        if job.state in {JobState.QUEUED, JobState.PAUSED}:
            job.cancel(at=now, actor=actor.name)
        elif job.state.holds_lease:
            _cancel_leased(tx, job, actor, now)
        elif job.state is not JobState.CANCELLED:
            raise ConflictError(f"job {job_id} is {job.state}: there is nothing to cancel")
        tx.save_job(job)
        return job


def _cancel_leased(tx: Transaction, job: Job, actor: Actor, now: float) -> None:
    """A worker that has started is asked; one that has not cannot hear, so its lease ends here and now."""
    lease = tx.live_lease(job.id)
    first = job.cancel_requested_at is None
    if first:
        job.cancel_requested_at = now
        job.note("job.cancel_requested", at=now, actor=actor.name)
    if lease is not None and lease.state is LeaseState.PROVISIONING:
        release_lease(
            tx, lease, job, LeaseState.EXPIRED, EndReason.CANCELLED, detail="cancelled", at=now, actor=actor.name
        )


def retry(ctx: Context, actor: Actor, job_id: str) -> Job:
    """Queue a failed or cancelled job again; it goes on from its last checkpoint."""
    with ctx.uow() as tx:
        job = owned(tx, actor, job_id)
        if job.state not in {JobState.FAILED, JobState.CANCELLED}:
            raise ConflictError(f"job {job_id} is {job.state}: only a failed or cancelled job can be retried")
        if tx.hold_member(job.member_id) is None:
            raise ConflictError(f"the owner of job {job_id} is no longer a member of this server: clone it instead")
        if gone := hold(tx, (d["sha256"] for d in job.spec["datasets"])):
            raise ConflictError(gone[1])
        job.queue_again(at=ctx.clock.now(), actor=actor.name, reason="retried on request")
        tx.save_job(job)
    ctx.wake()
    return job


def set_priority(ctx: Context, actor: Actor, job_id: str, priority: int) -> Job:
    """Move a job in the queue. Only an admin may go above 0: priority counts before fair share."""
    if priority > 0:
        _may_go_first(actor)
    with ctx.uow() as tx:
        job = owned(tx, actor, job_id)
        if job.state.is_final:
            raise ConflictError(f"job {job_id} is {job.state}: its priority no longer matters")
        job.priority = priority
        job.note("job.priority", at=ctx.clock.now(), actor=actor.name, priority=priority)
        tx.save_job(job)
    ctx.wake()
    return job


def _may_go_first(actor: Actor) -> None:
    if actor.role is not Role.ADMIN:
        raise ForbiddenError("a priority above 0 goes before other members' jobs; ask an admin")
