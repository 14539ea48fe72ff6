"""Jobs that others still need, and that must not be deleted before."""

from __future__ import annotations

from orchestrator.domain.errors import ConflictError
from orchestrator.domain.jobs import Job
from orchestrator.ports.repository import Transaction
from orchestrator.services import exported_files


def refuse_if_needed(tx: Transaction, job: Job) -> None:
    """Raise `ConflictError` if the job's adapter is in use, or if the job is evidence about another one's."""
    if tx.pushes.running_of_job(job.id) is not None:
        raise ConflictError(f"The adapter of job {job.id} is being pushed. Wait until that has ended.")
    exported_files.refuse_unfinished(tx, job)
    _refuse_if_promoted(tx, job)
    _refuse_if_evidence(tx, job)


def _refuse_if_promoted(tx: Transaction, job: Job) -> None:
    if promoting := tx.models.promoting(job.id):
        names = ", ".join(model.name for model in promoting)
        raise ConflictError(
            f"The adapter of job {job.id} is promoted in model {names}. Promote another candidate or roll back first."
        )


def _refuse_if_evidence(tx: Transaction, job: Job) -> None:
    """A comparison or judgement that was lost must stay, because a verdict states how many there were."""
    evaluation = tx.evaluations.get(job.id)
    if evaluation is None or evaluation.trained_job == job.id or evaluation.finished_at is None:
        return
    trained = tx.jobs.get_many([evaluation.trained_job]).get(evaluation.trained_job)
    is_compared = any(found.closed_at is not None for found in tx.comparisons.of_evaluation(job.id))
    is_compared |= any(found.finished_at is not None for found in tx.judgements.of_evaluation(job.id))
    if trained is not None and trained.deleted_at is None and (is_compared or tx.models.promoting(trained.id)):
        raise ConflictError(
            f"Job {job.id} is part of the evidence about the adapter of job {trained.id}. Delete that job first."
        )
