"""A job's head, and the checkpoints before it.

A head that is damaged or cannot be loaded is given up: the job continues from an earlier checkpoint, which is kept for
this.
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.domain.jobs import Checkpoint, Job, Lease
from orchestrator.domain.lifecycle import CheckpointState
from orchestrator.domain.scheduling import prune
from orchestrator.ports.repository import Transaction
from worker.shared.counted_words import many

LOADS = 2
"""A head is given up after this many sessions could not load it although its stored bytes are right."""
ROLL_BACKS = 10
"""A job fails after it has given up this many heads at the same step or a later one."""
NOT_LOADED, CORRUPT = "checkpoint.not_loaded", "checkpoint.corrupt"


def not_loaded(tx: Transaction, job: Job, lease: Lease, why: str, now: float) -> str | None:
    """Record that a session could not load the head, whose stored bytes are right.

    Returns what has changed in words. That is nothing until other sessions could not load it either, and None if the
    job cannot continue.
    """
    before = [e for e in tx.events.of_kind(job.id, NOT_LOADED) if e.data.get("sha256") == job.head]
    job.note(NOT_LOADED, at=now, actor="worker", reason=why, lease_id=lease.id, sha256=job.head, step=job.head_step)
    sessions = {event.lease_id for event in before} | {lease.id}
    if len(sessions) < LOADS:
        return ""
    return roll_back(tx, job, now, f"could not be loaded by {many(len(sessions), 'session')}")


def roll_back(tx: Transaction, job: Job, now: float, what: str) -> str | None:
    """Give up the head: continue from the newest committed checkpoint before it, or from the start.

    Returns what has changed in words. None if the job cannot continue: a clone or evaluation that began with a
    checkpoint has no other start, and keeps its damaged head.
    """
    head = tx.checkpoints.get(job.id, job.head or "")
    if head is None or head.state is CheckpointState.CORRUPT:
        return "" if head is None else None
    given_up = [e for e in tx.events.of_kind(job.id, CORRUPT) if e.data.get("step", 0) >= head.step]
    head.to(CheckpointState.CORRUPT)
    tx.checkpoints.save(head)
    older = [c for c in tx.checkpoints.of_job(job.id, CheckpointState.COMMITTED) if c.step < head.step]
    can_begin_again = job.first_step == 0 and not job.is_evaluation
    goes_on = (bool(older) or can_begin_again) and len(given_up) < ROLL_BACKS
    if goes_on:
        job.head, job.head_step = (older[-1].sha256, older[-1].step) if older else (None, 0)
        job.failures_in_a_row = 0
        _give_up_the_chain(tx, job)
    said = f"the checkpoint of step {head.step} {what}"
    rest = f", resuming from step {job.head_step}" if goes_on else _why_not(len(given_up))
    job.note(CORRUPT, at=now, actor="server", reason=said + rest, sha256=head.sha256, step=head.step)
    return said + rest if goes_on else None


def _why_not(given_up: int) -> str:
    return f", as {given_up} before it" if given_up >= ROLL_BACKS else " and there is no earlier one"


def _give_up_the_chain(tx: Transaction, job: Job) -> None:
    """Abandon pruned checkpoints after the new head. No job continues from them, and the head needs a new successor."""
    for checkpoint in tx.checkpoints.of_job(job.id, CheckpointState.PRUNED):
        if checkpoint.step > job.head_step:
            checkpoint.to(CheckpointState.ABANDONED)
            tx.checkpoints.save(checkpoint)


def prune_unneeded(tx: Transaction, job: Job, lease: Lease) -> bool:
    """Mark the checkpoints that an unfinished job no longer needs. Returns whether there were any.

    No session has loaded the head that `lease` has just committed. Until one has, its parent is kept, and the last one
    that a session loaded: the one that this session began with.
    """
    committed = tx.checkpoints.of_job(job.id, CheckpointState.COMMITTED)
    parent = next((c.parent for c in committed if c.sha256 == job.head), None)
    loaded = next((c.sha256 for c in committed if c.step == lease.first_step), None)
    return _prune(tx, job, committed, (parent, loaded))


def prune_finished(tx: Transaction, job: Job) -> None:
    """Mark the checkpoints that a finished job no longer needs: no session will load its head."""
    _prune(tx, job, tx.checkpoints.of_job(job.id, CheckpointState.COMMITTED), ())


def _prune(tx: Transaction, job: Job, committed: list[Checkpoint], needed: Iterable[str | None]) -> bool:
    keep = job.spec["checkpoint"]["keep"]
    going = set(prune([(c.sha256, c.step) for c in committed], job.head, keep, needed))
    for checkpoint in committed:
        if checkpoint.sha256 in going:
            checkpoint.to(CheckpointState.PRUNED)
            tx.checkpoints.save(checkpoint)
    return bool(going)
