"""Use cases of jobs: submit, pause, resume, cancel, retry, set priority, delete."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from orchestrator.domain.accounts import Actor, Role
from orchestrator.domain.errors import ConflictError, ForbiddenError, InvalidError, KeyTakenError
from orchestrator.domain.jobs import Checkpoint, Job, Lease
from orchestrator.domain.lifecycle import CheckpointState, EndReason, JobState, LeaseState
from orchestrator.domain.tracking import TrackedRun
from orchestrator.ports.providers import Handle, ProviderError
from orchestrator.ports.repository import Transaction
from orchestrator.services import exported_files
from orchestrator.services.access import owned_job
from orchestrator.services.checkpoints import sweep
from orchestrator.services.context import Context, new_id
from orchestrator.services.data_gate import refuse_findings
from orchestrator.services.datasets import hold, sweep_discarded, unused_keys
from orchestrator.services.failed_starts import Explanation
from orchestrator.services.job_pinning import of_unused
from orchestrator.services.job_resolution import resolve
from orchestrator.services.leases import release_lease
from orchestrator.services.needed_jobs import refuse_if_needed
from orchestrator.services.offline_sessions import refuse_hand_over
from worker.shared.data_checks.findings import Finding
from worker.shared.job_spec import JobSpec
from worker.shared.memory_estimate import Need

T = TypeVar("T")


class Write(Protocol):
    """Runs work in a transaction that is committed on return. `order` begins with the id of what it locks."""

    def __call__(self, order: tuple[str, int], piece: Callable[[Transaction], T], /) -> T: ...


@dataclass(frozen=True, kw_only=True)
class Submission:
    """The job of a request. `is_new` is false if an earlier request with the same idempotency key has queued it.

    `notes` are what its author should know.
    """

    job: Job
    is_new: bool
    notes: tuple[str, ...]


def submit(
    ctx: Context,
    actor: Actor,
    spec: JobSpec,
    *,
    key: str | None = None,
    tags: Collection[str] = (),
    note: str = "",
    write: Write | None = None,
) -> Submission:
    """Queue a job. With an idempotency `key`, the same request again returns the same job. A different one is refused.

    `write` may share its transaction with other requests. Without it the job gets a transaction of its own.
    """
    ready = prepare(ctx, actor, spec, key=key, of=" ".join(tags) + note)
    if isinstance(ready, Job):
        return _submitted_before(ctx, ready)
    ready = replace(ready, tags=tags, note=note)
    try:
        if write is not None:
            job = write((actor.member_id, 0), lambda tx: queue(ctx, tx, actor, ready))
        else:
            with ctx.uow() as tx:
                job = queue(ctx, tx, actor, ready)
    except KeyTakenError:
        return _submitted_before(ctx, job_of_winner(ctx, actor, ready))
    ctx.wake()
    return Submission(job=job, is_new=True, notes=ready.notes)


def _submitted_before(ctx: Context, job: Job) -> Submission:
    return Submission(job=job, is_new=False, notes=notes_of(ctx, job.id))


def notes_of(ctx: Context, job_id: str) -> tuple[str, ...]:
    """What the author of a job was told when it was submitted."""
    with ctx.uow() as tx:
        first = tx.events.after(0, job_id=job_id, limit=1)
    return tuple(first[0].data.get("notes", ())) if first else ()


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A job file with everything pinned, ready to be queued."""

    spec: JobSpec
    as_json: dict[str, Any]
    need: Need
    notes: tuple[str, ...]
    accepted: tuple[Finding, ...]
    key: str | None
    request_hash: str
    tags: Collection[str] = ()
    note: str = ""


def prepare(
    ctx: Context,
    actor: Actor,
    spec: JobSpec,
    *,
    key: str | None = None,
    of: str = "",
    given: Collection[str] = (),
    begun: Mapping[str, Any] | None = None,
) -> Ready | Job:
    """The part of `submit` that looks things up and may be slow. Returns the job itself if it was queued before.

    `of` is what else distinguishes two requests, besides the file. `given` and `begun` as in `resolve`.
    """
    _refuse_first(actor, spec.priority)
    request_hash = hashlib.sha256((spec.model_dump_json() + of).encode()).hexdigest()
    if key is not None and (again := earlier(ctx, actor, key, request_hash)) is not None:
        return again
    resolved, need, noted = resolve(ctx, actor, spec, given, begun)
    return Ready(
        spec=resolved,
        as_json=resolved.model_dump(mode="json"),
        need=need,
        notes=(*noted, *of_unused(unused_keys(ctx, resolved))),
        accepted=refuse_findings(ctx, resolved),
        key=key,
        request_hash=request_hash,
    )


def queue(
    ctx: Context,
    tx: Transaction,
    actor: Actor,
    ready: Ready,
    *,
    cloned_from: str | None = None,
    begin: Checkpoint | None = None,
    owner: str | None = None,
) -> Job:
    """The part of `submit` that writes. `begin` is the checkpoint of `cloned_from` from which a clone continues.

    The job is `owner`'s, or the actor's.
    """
    now, resolved, owner = ctx.clock.now(), ready.spec, owner or actor.member_id
    if tx.members.get_for_share(actor.member_id) is None:
        raise ForbiddenError("You are no longer a member of this server. Ask an admin.")
    files = resolved.files_by_pointer
    if gone := hold(tx, owner, (data.sha256 or "" for _, data in files), now):  # deleted since the lookup
        raise InvalidError(gone[1], [(files[gone[0]][0], gone[1])])
    job = Job(
        id=new_id("job", now),
        member_id=owner,
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
    facts: dict[str, Any] = {"cloned_from": cloned_from, "from_step": job.first_step} if cloned_from else {}
    if ready.notes:
        facts["notes"] = list(ready.notes)
    job.note("job.submitted", at=now, actor=actor.name, reason=" ".join(ready.notes), steps=job.total_steps, **facts)
    if ready.accepted:
        words = "; ".join(f"{found.check}: {found.words}" for found in ready.accepted)
        checks = list(dict.fromkeys(found.check for found in ready.accepted))
        job.note("job.findings_accepted", at=now, actor=actor.name, reason=words, checks=checks)
    if ready.key is not None:
        tx.idempotency.add(actor.member_id, ready.key, ready.request_hash, {"job": job.id}, now)
    tx.jobs.add(job)
    for tracker in resolved.report_to:
        tx.tracking.add(TrackedRun(job_id=job.id, tracker=tracker, member_id=owner, created_at=now))
    if ready.tags:
        tx.jobs.set_tags(job.id, ready.tags)
    if ready.note:
        tx.jobs.set_note(job.id, ready.note)
    if begin is not None:
        tx.checkpoints.add(replace(begin, job_id=job.id, parent=None, created_at=now))  # this job's chain begins here
    return job


def job_of_winner(ctx: Context, actor: Actor, ready: Ready) -> Job:
    """The job of the request with the same key that was faster. Raises `ConflictError` if that was another request."""
    job = earlier(ctx, actor, ready.key or "", ready.request_hash)
    if job is None:
        raise ConflictError("A request with this Idempotency-Key is in progress. Try again.")
    return job


def earlier(ctx: Context, actor: Actor, key: str, request_hash: str) -> Job | None:
    """The job that a request with this key has queued. Raises `ConflictError` if that was another request."""
    with ctx.uow() as tx:
        used = tx.idempotency.get(actor.member_id, key)
        if used is None:
            return None
        if used[0] != request_hash:
            raise ConflictError("This Idempotency-Key was used for another request. Choose a new one.")
        job = tx.jobs.get(used[1]["job"])
        if job is not None and job.deleted_at is not None:
            raise ConflictError("The job of this Idempotency-Key was deleted. Choose a new one.")
        return job


def pause(ctx: Context, actor: Actor, job_id: str) -> Job:
    """Stop at the end of the next step with everything saved. A queued job is just removed from the queue."""
    now = ctx.clock.now()
    with ctx.uow() as tx:
        job = owned_job(tx, actor, job_id)
        if job.state is JobState.QUEUED:
            job.to(JobState.PAUSED, reason="paused on request", at=now, actor=actor.name)
        elif job.state.holds_lease and job.pause_requested_at is None:
            job.pause_requested_at = now
            job.note("job.pause_requested", at=now, actor=actor.name)
        elif job.state.is_final:
            raise ConflictError(f"Job {job_id} is {job.state.word} and cannot be paused.")
        tx.jobs.save(job)
        return job


def resume(ctx: Context, actor: Actor, job_id: str) -> Job:
    """Queue a paused job again, or withdraw a pause that has not happened yet."""
    now = ctx.clock.now()
    with ctx.uow() as tx:
        job = owned_job(tx, actor, job_id)
        if job.state is JobState.PAUSED:
            job.queue_again(at=now, actor=actor.name, reason="resumed on request")
        elif job.pause_requested_at is not None:
            job.pause_requested_at = None
            job.note("job.pause_withdrawn", at=now, actor=actor.name)
        else:
            raise ConflictError(f"Job {job_id} is {job.state.word}, not paused.")
        tx.jobs.save(job)
    ctx.wake()
    return job


def hand_over(ctx: Context, actor: Actor, job_id: str) -> Job:
    """Make the running session save and exit, so that the job continues on the next free machine."""
    now = ctx.clock.now()
    with ctx.uow() as tx:
        job = owned_job(tx, actor, job_id)
        lease = tx.leases.live_of_job(job.id)
        if lease is None or lease.state is LeaseState.PROVISIONING:
            raise ConflictError(f"Job {job_id} is {job.state.word}. Only a running job can move to another machine.")
        refuse_hand_over(lease)
        if lease.state is LeaseState.ACTIVE:
            lease.to(LeaseState.DRAINING)
            tx.leases.save(lease)
            job.note("job.handover_requested", at=now, actor=actor.name, lease_id=lease.id)
            tx.jobs.save(job)
        return job


def cancel(ctx: Context, actor: Actor, job_id: str) -> Job:
    """End the job. The machine that runs it gets a request to stop, and is stopped if it does not obey."""
    now = ctx.clock.now()
    with ctx.uow() as tx:
        job = owned_job(tx, actor, job_id)
        if job.state in {JobState.QUEUED, JobState.PAUSED}:
            job.cancel(at=now, actor=actor.name)
        elif job.state.holds_lease:
            _cancel_leased(tx, job, actor, now)
        elif job.state is not JobState.CANCELLED:
            raise ConflictError(f"Job {job_id} is {job.state.word} and cannot be cancelled.")
        tx.jobs.save(job)
        return job


def _cancel_leased(tx: Transaction, job: Job, actor: Actor, now: float) -> None:
    """Request the worker to stop. If it has not started, it cannot receive the request, and its lease ends at once."""
    lease = tx.leases.live_of_job(job.id)
    first = job.cancel_requested_at is None
    if first:
        job.cancel_requested_at = now
        job.note("job.cancel_requested", at=now, actor=actor.name)
    if lease is not None and lease.state is LeaseState.PROVISIONING:
        end, why = EndReason.CANCELLED, Explanation("cancelled")
        release_lease(tx, lease, job, LeaseState.EXPIRED, end, why, at=now, actor=actor.name)


def retry(ctx: Context, actor: Actor, job_id: str) -> Job:
    """Queue a failed or cancelled job again. It continues from its last checkpoint."""
    with ctx.uow() as tx:
        job = owned_job(tx, actor, job_id)
        if job.state not in {JobState.FAILED, JobState.CANCELLED}:
            raise ConflictError(f"Job {job_id} is {job.state.word}. Only a failed or cancelled job can be retried.")
        if tx.members.get_for_share(job.member_id) is None:
            raise ConflictError(
                f"The owner of job {job_id} is no longer a member of this server. Clone the job instead."
            )
        files = JobSpec.model_validate(job.spec).files_by_pointer
        if gone := hold(tx, job.member_id, (data.sha256 or "" for _, data in files), ctx.clock.now()):
            raise ConflictError(gone[1])
        exported_files.refuse_without_adapter(tx, job)
        job.queue_again(at=ctx.clock.now(), actor=actor.name, reason="retried on request")
        tx.tracking.reopen(job_id)
        tx.jobs.save(job)
    ctx.wake()
    return job


def set_priority(ctx: Context, actor: Actor, job_id: str, priority: int) -> Job:
    """Move a job in the queue. Only an admin may set more than 0, because priority counts before fair share."""
    _refuse_first(actor, priority)
    with ctx.uow() as tx:
        job = owned_job(tx, actor, job_id)
        if job.state.is_final:
            raise ConflictError(f"Job {job_id} is {job.state.word}, so its priority cannot change.")
        job.priority = priority
        job.note("job.priority", at=ctx.clock.now(), actor=actor.name, priority=priority)
        tx.jobs.save(job)
    ctx.wake()
    return job


def _refuse_first(actor: Actor, priority: int) -> None:
    if priority > 0 and actor.role is not Role.ADMIN:
        raise ForbiddenError("A priority above 0 needs an admin. Ask one, or use 0 or less.")


def delete(ctx: Context, actor: Actor, job_id: str) -> None:
    """Delete an ended job, its checkpoints, adapter, exports, curves, samples and logs, for everyone and for good.

    A clone keeps the checkpoint that it began with. The hours of its sessions and the events that say what happened are
    kept. Raises `ConflictError` while the job, or what one of its machines left, may still be needed. What a store does
    not delete now is deleted in a later round.
    """
    with ctx.uow() as tx:
        job = _ended(tx, actor, job_id)
        leases = tx.leases.of_job(job_id)
        for checkpoint in tx.checkpoints.of_job(job_id, CheckpointState.COMMITTED):
            checkpoint.to(CheckpointState.PRUNED)
            tx.checkpoints.save(checkpoint)
        if job.adapter_key is not None:
            tx.datasets.discard(job.adapter_key, job.adapter_store)
        exported_files.discard(tx, job)
        job.delete(at=ctx.clock.now(), actor=actor.name)
        tx.jobs.save(job)
        tx.jobs.delete_records(job_id)
    sweep(ctx)
    sweep_discarded(ctx)
    if ctx.exports is not None:
        ctx.exports.forget_job(job_id)
    if ctx.trackers is not None:
        ctx.trackers.forget(job_id)
    for lease in leases:
        _erase_log(ctx, lease)


def _ended(tx: Transaction, actor: Actor, job_id: str) -> Job:
    job = owned_job(tx, actor, job_id)
    if not job.state.is_final:
        raise ConflictError(f"Job {job_id} is {job.state.word}. Cancel it before you delete it.")
    uncollected = [lease for lease in tx.leases.of_job(job_id) if lease.collected_at is None]
    for following in (tx.leases.get(lease.next_id) for lease in uncollected):
        if following is not None and following.state.is_live:
            raise ConflictError(
                f"The last session of job {job_id} continues with job {following.job_id}. Wait until that job has "
                "ended, or cancel it."
            )
    if uncollected:
        raise ConflictError(f"The last session of job {job_id} is still being cleaned up. Try again in a minute.")
    refuse_if_needed(tx, job)
    return job


def _erase_log(ctx: Context, lease: Lease) -> None:
    if lease.continues:  # the log is that of the session which it began in
        return
    with contextlib.suppress(ProviderError):
        ctx.providers.get(lease.provider).delete_log(Handle.of(lease, None))
