"""Reads the answers of a finished evaluation from the store, and keeps them with their report."""

from __future__ import annotations

from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import Any

from orchestrator.domain.errors import InvalidError, NotFoundError
from orchestrator.domain.evaluations import Answers
from orchestrator.domain.jobs import Job
from orchestrator.ports.repository import Transaction
from orchestrator.ports.stores import Store, StoreError
from orchestrator.services.evaluation_judges import keep_judgement
from orchestrator.services.evaluation_report import report_of
from orchestrator.services.stores import from_store
from worker.shared import answers_file
from worker.shared.answers_file import Answered, AnswersError, AnswersFile
from worker.shared.results import StoredAnswers

IN_MEMORY = 4 << 20
"""Bytes of a file that are read without a file on the disk."""


@dataclass(frozen=True)
class Result:
    """The answers of an evaluation with their report, which takes seconds to compute."""

    found: AnswersFile
    report: dict[str, Any]


def stored_answers(store: Store, said: StoredAnswers) -> Result:
    """The answers in a stored file of the size that its worker said, and their report. Not for a transaction.

    Raises `InvalidError` for a file that cannot be read, `UnavailableError` if the store does not answer.
    """
    with SpooledTemporaryFile(max_size=IN_MEMORY) as copy:
        try:
            for piece in store.read(said.key):
                copy.write(piece)
        except StoreError as error:
            raise from_store(error) from error
        copy.seek(0)
        try:
            found = answers_file.read(copy)
        except AnswersError as error:
            raise InvalidError(f"The answers cannot be read: {error}.", [("/answers", str(error))]) from error
    return Result(found, report_of(found))


def keep(tx: Transaction, job: Job, result: Result, sha256: str, now: float) -> None:
    """Write the answers and the report of an evaluation that is done."""
    evaluation = tx.evaluations.get(job.id)
    if evaluation is None:
        raise NotFoundError(f"There is no evaluation {job.id}.")
    evaluation.answers_sha256, evaluation.report, evaluation.finished_at = sha256, result.report, now
    tx.evaluations.finish(evaluation, [_row(job.id, each) for each in result.found.answered])
    keep_judgement(tx, job, evaluation, result.found, now)
    job.note("evaluation.finished", at=now, actor="worker", prompts=len(result.found.answered), sha256=sha256)


def _row(job_id: str, each: Answered) -> Answers:
    return Answers(
        job_id=job_id,
        number=each.number,
        prompt=[{"role": turn.role, "content": turn.content} for turn in each.prompt],
        base=each.base.text,
        adapter=each.adapter.text,
        base_truncated=each.base.truncated,
        adapter_truncated=each.adapter.truncated,
        base_tokens=each.base.tokens,
        adapter_tokens=each.adapter.tokens,
    )
