"""What happens to a job whose newest checkpoint turns out to be damaged."""

from __future__ import annotations

from orchestrator.domain.lifecycle import CheckpointState
from orchestrator.domain.model import Job
from orchestrator.persistence import Transaction


def fall_back(tx: Transaction, job: Job, now: float) -> None:
    """The head is damaged: go on from the newest committed checkpoint before it, or fail if none is left."""
    head = tx.checkpoint(job.id, job.head or "")
    if head is None:
        return
    head.to(CheckpointState.CORRUPT)
    tx.save_checkpoint(head)
    older = [c for c in tx.checkpoints(job.id, CheckpointState.COMMITTED) if c.step < head.step]
    previous = older[-1] if older else None
    job.head, job.head_step = (previous.sha256, previous.step) if previous else (None, 0)
    job.note(
        "checkpoint.corrupt",
        at=now,
        actor="server",
        reason=f"the checkpoint of step {head.step} is damaged; going on from step {job.head_step}",
        sha256=head.sha256,
        step=head.step,
    )
