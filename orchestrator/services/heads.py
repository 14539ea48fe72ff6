"""What happens to a job whose newest checkpoint turns out to be damaged."""

from __future__ import annotations

from orchestrator.domain.lifecycle import CheckpointState
from orchestrator.domain.model import Checkpoint, Job
from orchestrator.ports.providers import Context, ObjectMissing, StoreError
from orchestrator.ports.repository import Transaction


def is_damaged(ctx: Context, checkpoint: Checkpoint) -> bool:
    """Whether the store holds other bytes than were committed, or none; false where it does not answer."""
    try:
        return ctx.stores.get(checkpoint.store).stat(checkpoint.key).sha256 != checkpoint.sha256
    except ObjectMissing:
        return True
    except StoreError:
        return False


def roll_back_head(tx: Transaction, job: Job, now: float) -> bool:
    """The head is damaged: go on from the newest committed checkpoint before it, or from the start.

    False if there is neither: a clone that began with a checkpoint has no other start, and keeps its damaged head.
    """
    head = tx.checkpoint(job.id, job.head or "")
    if head is None or head.state is CheckpointState.CORRUPT:
        return head is None
    head.to(CheckpointState.CORRUPT)
    tx.save_checkpoint(head)
    older = [c for c in tx.checkpoints(job.id, CheckpointState.COMMITTED) if c.step < head.step]
    goes_on = bool(older) or job.first_step == 0
    if older:
        job.head, job.head_step = older[-1].sha256, older[-1].step
    elif goes_on:
        job.head, job.head_step = None, 0
        _give_up_the_chain(tx, job)
    job.note(
        "checkpoint.corrupt",
        at=now,
        actor="server",
        reason=f"the checkpoint of step {head.step} is damaged"
        + (f"; going on from step {job.head_step}" if goes_on else " and no other is left"),
        sha256=head.sha256,
        step=head.step,
    )
    return goes_on


def _give_up_the_chain(tx: Transaction, job: Job) -> None:
    """What was pruned belongs to a chain that nothing goes on from: the new start has to have a first checkpoint, too."""
    for checkpoint in tx.checkpoints(job.id, CheckpointState.PRUNED):
        checkpoint.to(CheckpointState.ABANDONED)
        tx.save_checkpoint(checkpoint)
