"""When a job will be done, from the first steps that a machine has timed; said as soon as that is known."""

from __future__ import annotations

from orchestrator.domain.model import Job, Lease
from orchestrator.domain.scheduling import Candidate
from orchestrator.ports.repository import Transaction
from orchestrator.services.forecast import forecast
from worker.shared.messages import Phase, Report

_BEFORE_TRAINING = (Phase.BOOT, Phase.DOWNLOAD, Phase.LOAD, Phase.RESTORE)


def first_step_time(tx: Transaction, lease: Lease, job: Job, said: Report, now: float) -> None:
    """A session's first timed step: the scheduler goes by it from now on, and a deadline it cannot meet is noted."""
    if said.seconds_per_step is None or lease.seconds_per_step is not None:
        return
    step_s, steps = said.seconds_per_step, job.total_steps - said.step
    job.timed(step_s, gpu=lease.on_gpu)
    found = forecast(
        steps=steps,
        step_s=step_s,
        step_time=job.step_time,
        session_left_s=lease.deadline_at - now,
        places=[_more_of_the_same(lease, said)],
        now=now,
    )
    done_at = now + (found.seconds if found else steps * step_s)
    if job.deadline is not None and done_at > job.deadline:
        job.note(
            "job.deadline_at_risk",
            at=now,
            actor="scheduler",
            lease_id=lease.id,
            reason=f"at {step_s:.2f} s a step it is done {_spell(done_at - job.deadline)} after its deadline",
            done_at=done_at,
            deadline=job.deadline,
        )
    tx.save_job(job)


def _more_of_the_same(lease: Lease, said: Report) -> Candidate:
    """Where the job would go on if every further session were like this one."""
    return Candidate(
        account_id=lease.account_id,
        provider=lease.provider,
        name=lease.provider,
        member_id=lease.member_id,
        slots=1,
        session_s=lease.budget_s,
        gpu=lease.on_gpu,
        start_up_s=sum(said.ledger.get(phase, 0.0) for phase in _BEFORE_TRAINING),
    )


def _spell(seconds: float) -> str:
    if seconds < 5400:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h"
