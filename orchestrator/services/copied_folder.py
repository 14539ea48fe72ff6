"""Makes a copied data folder a server of its own: everything that runs or is stored elsewhere stays the original's."""

from __future__ import annotations

import dataclasses

from orchestrator.domain.jobs import Job
from orchestrator.domain.judgements import JudgementState
from orchestrator.domain.lifecycle import CheckpointState, EndReason, JobState, LeaseState
from orchestrator.domain.notifications import DeliveryState
from orchestrator.domain.pushes import PushState
from orchestrator.ports.repository import Transaction
from orchestrator.services.context import Context
from orchestrator.services.failed_starts import Explanation
from orchestrator.services.leases import release_lease

REASON = "belongs to the original server, which this is a copy of"
_ACTOR = "copy"
_MANY = 100_000


def leave_to_the_original(ctx: Context) -> None:
    """Give up all sessions without stopping them, pause all unfinished jobs, and let go of files in other stores.

    Repeating the call changes nothing more.
    """
    now = ctx.clock.now()
    with ctx.uow() as tx:
        _give_up_sessions(tx, now)
        for member in tx.members.all():
            for job in tx.jobs.unended(member.id):
                _pause(tx, job, now)
        for code in tx.codes.with_mailbox():
            code.mailbox = ""
            tx.codes.save(code)
        for account in tx.accounts.all():
            account.image = {k: v for k, v in account.image.items() if k not in ("left", "running")}
            tx.accounts.save(account)
        for delivery in tx.deliveries.due(float("inf"), _MANY):
            delivery.state, delivery.detail = DeliveryState.FAILED, REASON
            tx.deliveries.save(delivery)
        _end_calls(tx, now)
        for store in tx.stores.all():
            if store.credentials:
                problem = "The original server uses this folder. Sign in again, with another folder or account."
                tx.stores.put(dataclasses.replace(store, credentials="", problem=problem))


def _end_calls(tx: Transaction, now: float) -> None:
    """The original asks judge models, pushes adapters and writes to experiment trackers."""
    for judgement in tx.judgements.running():
        judgement.state, judgement.reason = JudgementState.PAUSED, f"It {REASON}."
        tx.judgements.save(judgement)
    for push in tx.pushes.running():
        push.state, push.reason = PushState.FAILED, f"It {REASON}."
        tx.pushes.save(push)
    for run in tx.tracking.unfinished():
        run.gave_up_at, run.reason = now, f"It {REASON}."
        tx.tracking.save(run)


def _give_up_sessions(tx: Transaction, now: float) -> None:
    for lease in tx.leases.live():
        job = tx.jobs.get(lease.job_id)
        assert job is not None, "a lease refers to its job"
        job.pause_requested_at = now
        for offer in tx.checkpoints.of_job(job.id, CheckpointState.OFFERED):
            offer.to(CheckpointState.ABANDONED)
            offer.key = ""
            tx.checkpoints.save(offer)
        why = Explanation(REASON)
        release_lease(tx, lease, job, LeaseState.EXPIRED, EndReason.LOST, why, at=now, actor=_ACTOR, counts=False)
    for lease in tx.leases.uncollected():
        tx.leases.set_collected(lease.id, now)


def _pause(tx: Transaction, job: Job, now: float) -> None:
    if job.state is JobState.QUEUED:
        job.to(JobState.PAUSED, reason=REASON, at=now, actor=_ACTOR)
        tx.jobs.save(job)
