"""Effects of a worker's messages on its lease and job. Everything runs within a transaction."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.domain import diagnosis
from orchestrator.domain.errors import ConflictError, InvalidError, NotFoundError, StaleFenceError
from orchestrator.domain.jobs import Checkpoint, Job, Lease
from orchestrator.domain.lifecycle import EndReason, JobState, LeaseState
from orchestrator.domain.scheduling import LAST_SAVE_S, estimate_sessions
from orchestrator.domain.storage import Dataset
from orchestrator.ports.repository import Transaction
from orchestrator.services.context import Context
from orchestrator.services.failed_starts import Explanation, close, weigh
from orchestrator.services.hidden_names import without_addresses
from orchestrator.services.repeated_steps import note_other_rows
from worker.shared import causes
from worker.shared.job_spec import JobSpec
from worker.shared.manifest import Fidelity
from worker.shared.messages import (
    Action,
    Directive,
    Finish,
    Phase,
    Release,
    Report,
    StartRequest,
)
from worker.shared.wire import PROTOCOL_VERSION

NOT_STORED = "checkpoint.not_stored"
BEFORE_TRAINING = (Phase.BOOT, Phase.DOWNLOAD, Phase.LOAD, Phase.RESTORE)

_RELEASES = {
    "deadline": EndReason.HANDED_OFF,
    "drained": EndReason.HANDED_OFF,
    "paused": EndReason.PAUSED,
    "cancelled": EndReason.CANCELLED,
    "unfit": EndReason.UNFIT,
}


def held(tx: Transaction, lease_id: str, fence: int | None = None) -> tuple[Lease, Job]:
    """The lease and its job, if the fence is still valid. Raises `StaleFenceError` or `NotFoundError`."""
    return still_held(tx, find_lease(tx, lease_id), fence)


def find_lease(tx: Transaction, lease_id: str) -> Lease:
    """The lease. Raises `NotFoundError`."""
    lease = tx.leases.get(lease_id)
    if lease is None:
        raise NotFoundError(f"There is no lease {lease_id}.")
    return lease


def still_held(tx: Transaction, lease: Lease, fence: int | None) -> tuple[Lease, Job]:
    """The same of a lease that was looked up."""
    job = tx.jobs.get(lease.job_id)
    if job is None:
        raise NotFoundError(f"There is no job {lease.job_id}.")
    if fence is not None and lease.fence != fence:
        raise StaleFenceError(f"Lease {lease.id} has fence {lease.fence}, not {fence}. Stop the worker.")
    lease.guard()
    job.guard(lease.fence)
    return lease, job


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A lease whose worker has started, with what it will read. A dataset that was deleted is None.

    `trained` is the job whose adapter an export or a chat begins with.
    """

    lease: Lease
    job: Job
    spec: JobSpec
    head: Checkpoint | None
    datasets: list[Dataset | None]
    trained: Job | None = None


def trained_job(tx: Transaction, spec: JobSpec) -> Job | None:
    """The job whose adapter an export or a chat begins with. It cannot be deleted before that has ended."""
    return tx.jobs.get_many([spec.used_job])[spec.used_job] if spec.used_job is not None else None


def begin(ctx: Context, tx: Transaction, lease_id: str, request: StartRequest, fence: int | None = None) -> Begun:
    """A worker has started. Repeating the call with the same nonce gives the same result.

    A worker that can call does not know its fence yet and sends none.
    """
    if request.protocol != PROTOCOL_VERSION:
        raise InvalidError(
            f"The worker uses protocol {request.protocol}, the server {PROTOCOL_VERSION}. Install the "
            "same version of trainhop."
        )
    now = ctx.clock.now()
    lease, job = held(tx, lease_id, fence)
    if lease.nonce is not None and lease.nonce != request.nonce:
        raise ConflictError(f"Lease {lease_id} was started by another process. Stop this one.")
    spec = JobSpec.model_validate(job.spec)
    if lease.nonce is None:
        _begin(lease, job, request, now)
        if lease.offline:  # its time starts with the machine, which may be long after the launch
            lease.deadline_at = now + lease.budget_s + ctx.limits.stop_grace_s
        _note_image(tx, lease, job, now)
        tx.jobs.save(job)
    lease.last_seen_at, lease.expires_at = now, now + ctx.limits.lease_s
    tx.leases.save(lease)
    head = tx.checkpoints.get(job.id, job.head) if job.head else None
    datasets = [tx.datasets.get(d.sha256 or "") for d in spec.files]
    trained = trained_job(tx, spec)
    return Begun(lease=lease, job=job, spec=spec, head=head, datasets=datasets, trained=trained)


def _begin(lease: Lease, job: Job, request: StartRequest, now: float) -> None:
    lease.nonce, lease.started_at = request.nonce, now
    lease.hardware = request.hardware.model_dump(mode="json")
    lease.first_step = lease.step = job.head_step
    lease.image, lease.detail = request.image, ""
    if lease.state is LeaseState.PROVISIONING:
        lease.to(LeaseState.ACTIVE)
    name = request.hardware.name or request.hardware.device
    job.to(JobState.RUNNING, reason=f"started on {name}", at=now, actor="worker", lease_id=lease.id)


def _note_image(tx: Transaction, lease: Lease, job: Job, now: float) -> None:
    """Record on the account and the job if the session's image is not the one that was checked."""
    account = tx.accounts.get(lease.account_id)
    if account is None:
        return
    noticed = diagnosis.noticed(account.image, "gpu" if lease.on_gpu else "cpu", lease.image, now)
    if noticed is not None:
        account.image = noticed
        tx.accounts.save(account)
        reason = diagnosis.changed(noticed, account.provider)
        job.note("image.changed", at=now, actor="worker", reason=reason, lease_id=lease.id)


def lease_prefix(lease: Lease) -> str:
    """The only folder this lease may write to. So a zombie cannot change its successor's files."""
    return f"jobs/{lease.job_id}/f{lease.fence}/"


def report(ctx: Context, tx: Transaction, message: Report) -> Directive:
    """Keep a report, extend the lease, return the next directive. An old report adds only what is missing."""
    now = ctx.clock.now()
    lease, job = held(tx, message.lease, message.fence)
    lease.last_seen_at, lease.expires_at = now, now + ctx.limits.lease_s
    is_new = message.seq > lease.last_seq
    if is_new:
        note_other_rows(tx, lease, job, message, now)  # before they are replaced
    tx.reports.add_metrics(job.id, lease, message.metrics, now, replace=is_new)
    if is_new:
        if message.seconds_per_step is not None and lease.seconds_per_step is None:
            _first_timed_step(tx, lease, job, message, message.seconds_per_step, now)
        _take_in(lease, message)
        _note_problem(tx, lease, job, message, now)
        tx.reports.add_samples(job.id, message.samples, now)
        if message.reading is not None:
            tx.reports.add_reading(lease.id, now, message.step, message.reading)
    tx.leases.save(lease)
    return directive(lease, job)


def _note_problem(tx: Transaction, lease: Lease, job: Job, message: Report, now: float) -> None:
    """Keep why the session cannot save, for as long as it says so. Add an event when that begins.

    Addresses in the worker's words are hidden, because an address may be a permission.
    """
    words = without_addresses(message.problem)
    if words and not lease.detail:
        job.note(NOT_STORED, at=now, actor="worker", reason=words, lease_id=lease.id)
        tx.jobs.save(job)
    lease.detail = words


def _first_timed_step(tx: Transaction, lease: Lease, job: Job, message: Report, step_s: float, now: float) -> None:
    """Record the step time, which the scheduler uses from now on. Add an event if the job will miss its deadline."""
    job.timed(step_s, gpu=lease.on_gpu)
    start_up_s = sum(message.ledger.get(phase, 0.0) for phase in BEFORE_TRAINING)
    done_at = _done_at(lease, job.total_steps - message.step, step_s, start_up_s, now)
    if job.deadline is not None and done_at > job.deadline:
        late = _in_words(done_at - job.deadline)
        job.note(
            "job.deadline_at_risk",
            at=now,
            actor="scheduler",
            lease_id=lease.id,
            reason=f"at {step_s:.2f} s per step the job ends {late} after its deadline",
            done_at=done_at,
            deadline=job.deadline,
        )
    tx.jobs.save(job)


def _done_at(lease: Lease, steps: int, step_s: float, start_up_s: float, now: float) -> float:
    """When `steps` more steps are done if every further session is like this one."""
    work_s, here_s = steps * step_s, max(0.0, lease.deadline_at - now - LAST_SAVE_S)
    if work_s <= here_s:
        return now + work_s
    _, more_s = estimate_sessions(work_s - here_s, lease.budget_s, start_up_s + LAST_SAVE_S)
    return now + here_s + more_s


def _in_words(seconds: float) -> str:
    if seconds < 5400:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h"


def _take_in(lease: Lease, message: Report) -> None:
    lease.last_seq = message.seq
    lease.step = max(lease.step, message.step)
    lease.phase = message.phase
    lease.ledger = {str(k): v for k, v in message.ledger.items()} or lease.ledger
    lease.seconds_per_step = message.seconds_per_step or lease.seconds_per_step
    if lease.fidelity != Fidelity.STATE_EXACT:  # the label only falls
        lease.fidelity = message.fidelity or lease.fidelity
    lease.backend = message.backend or lease.backend


def directive(lease: Lease, job: Job) -> Directive:
    """What the worker of this lease is to do next."""
    if job.cancel_requested_at is not None:
        return Directive(action=Action.ABORT, reason="cancelled")
    if job.pause_requested_at is not None:
        return Directive(action=Action.DRAIN, reason="paused")
    if lease.state is LeaseState.DRAINING:
        return Directive(action=Action.DRAIN, reason="drained")
    return Directive(action=Action.CONTINUE)


def release(ctx: Context, tx: Transaction, message: Release) -> None:
    """A worker leaves before the job is done. The job is free at once."""
    now = ctx.clock.now()
    end = _RELEASES[message.reason]
    lease = find_lease(tx, message.lease)
    if already_ended(lease, message.fence, end):
        return
    lease, job = still_held(tx, lease, message.fence)
    last_words(lease, message, now)
    cause = causes.NO_STEP if message.reason == "deadline" else message.cause
    why = Explanation(message.detail, cause, message.has_remedy)
    release_lease(tx, lease, job, LeaseState.RELEASED, end, why, at=now, actor="worker")


def already_ended(lease: Lease, fence: int, end: EndReason) -> bool:
    """Whether the lease has ended like this before, so that the message is a repeated one."""
    return lease.fence == fence and not lease.state.is_live and lease.end_reason is end


def last_words(lease: Lease, message: Release | Finish, now: float) -> None:
    """Keep what the last message of a session says of its progress."""
    lease.step, lease.last_seq = max(lease.step, message.step), max(lease.last_seq, message.seq)
    lease.last_seen_at = now
    lease.ledger = {str(phase): seconds for phase, seconds in message.ledger.items()} or lease.ledger


def release_lease(
    tx: Transaction,
    lease: Lease,
    job: Job,
    state: LeaseState,
    end: EndReason,
    why: Explanation,
    *,
    at: float,
    actor: str,
    counts: bool = True,
) -> None:
    """Close the lease and move its job as the reason requires, in one transaction. See `Job.release` for `counts`."""
    close(tx, lease, state, end, why, at=at)
    verdict = weigh(tx, lease, job, at, counts=counts)
    job.release(
        end,
        detail=lease.detail,
        at=at,
        actor=actor,
        lease_id=lease.id,
        retry_at=verdict.retry_at,
        counts=verdict.counts,
        cause=lease.cause,
        stop=verdict.stop,
    )
    tx.jobs.save(job)
