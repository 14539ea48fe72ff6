"""The repository of evaluations and their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import delete, select

from orchestrator.adapters.database import evaluation_tables as tables
from orchestrator.adapters.database.mapper import Mapper
from orchestrator.adapters.database.repository import SqlRepository
from orchestrator.domain.evaluations import Answers, Evaluation

EVALUATIONS = Mapper(
    Evaluation, tables.evaluations, frozen=("trained_job", "owner", "checkpoint_sha256", "settings", "created_at")
)
ANSWERS = Mapper(Answers, tables.evaluation_answers)
_evaluations, _answers = tables.evaluations.c, tables.evaluation_answers.c


class SqlEvaluationRepository(SqlRepository):
    """Implements `ports.repository.evaluations.EvaluationRepository`."""

    def get(self, job_id: str) -> Evaluation | None:
        return EVALUATIONS.get(self._connection, job_id=job_id)

    def of_job(self, trained_job: str) -> list[Evaluation]:
        order = (_evaluations.created_at.desc(), _evaluations.job_id.desc())
        rows = self._connection.execute(
            EVALUATIONS.select.where(_evaluations.trained_job == trained_job).order_by(*order)
        )
        return [EVALUATIONS.load(tuple(row)) for row in rows]

    def add(self, evaluation: Evaluation) -> None:
        EVALUATIONS.add(self._connection, evaluation)

    def save(self, evaluation: Evaluation) -> None:
        EVALUATIONS.save(self._connection, evaluation)

    def finish(self, evaluation: Evaluation, answers: Sequence[Answers]) -> None:
        self.save(evaluation)
        self._connection.execute(delete(tables.evaluation_answers).where(_answers.job_id == evaluation.job_id))
        ANSWERS.add(self._connection, *map(_storable, answers))

    def answer(self, job_id: str, number: int) -> Answers | None:
        return ANSWERS.get(self._connection, job_id=job_id, number=number)

    def lengths(self, job_id: str) -> dict[int, tuple[int, int]]:
        columns = (_answers.number, _answers.base_tokens, _answers.adapter_tokens)
        rows = self._connection.execute(select(*columns).where(_answers.job_id == job_id))
        return {number: (base, adapter) for number, base, adapter in rows}


def _storable(answers: Answers) -> Answers:
    """PostgreSQL cannot store this character, and a model may produce it."""
    base, adapter = (text.replace("\0", "\ufffd") for text in (answers.base, answers.adapter))
    return replace(answers, base=base, adapter=adapter)
