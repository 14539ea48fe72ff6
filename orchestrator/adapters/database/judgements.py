"""The repositories of judge endpoints, judgements, and the judges' answers."""

from __future__ import annotations

from sqlalchemy import Connection, delete, select, update

from orchestrator.adapters.database import judge_tables as tables
from orchestrator.adapters.database.compiled_sql import Upsert
from orchestrator.adapters.database.mapper import Mapper
from orchestrator.adapters.database.repository import SqlRepository
from orchestrator.domain.judgements import JudgeAnswer, JudgeEndpoint, Judgement, JudgementState
from orchestrator.domain.trust.judge import Slot

ENDPOINTS = Mapper(JudgeEndpoint, tables.judge_endpoints, frozen=("member_id", "name", "url", "model", "created_at"))
JUDGEMENTS = Mapper(
    Judgement,
    tables.judgements,
    enums={"state": JudgementState},
    frozen=(
        "job_id",
        "member_id",
        "endpoint_id",
        "url",
        "model",
        "prompt_version",
        "prompts",
        "identical",
        "created_at",
    ),
)
ANSWERS = Mapper(JudgeAnswer, tables.judge_answers, enums={"verdict": Slot})
_endpoints, _judgements, _answers = tables.judge_endpoints.c, tables.judgements.c, tables.judge_answers.c
_add_endpoint, _add_judgement = Upsert(tables.judge_endpoints), Upsert(tables.judgements)
_add_answer = Upsert(tables.judge_answers)


class SqlJudgeEndpointRepository(SqlRepository):
    """Implements `ports.repository.judgements.JudgeEndpointRepository`."""

    def get(self, endpoint_id: str) -> JudgeEndpoint | None:
        return ENDPOINTS.get(self._connection, id=endpoint_id)

    def of_member(self, member_id: str) -> list[JudgeEndpoint]:
        return ENDPOINTS.where(self._connection, _endpoints.member_id == member_id, order=_endpoints.name)

    def add(self, endpoint: JudgeEndpoint) -> bool:
        _add_endpoint.run(self._connection, ENDPOINTS.dump(endpoint))
        return self.get(endpoint.id) is not None

    def save(self, endpoint: JudgeEndpoint) -> None:
        ENDPOINTS.save(self._connection, endpoint)

    def delete(self, endpoint_id: str) -> None:
        self._connection.execute(delete(tables.judge_endpoints).where(_endpoints.id == endpoint_id))


class SqlJudgementRepository(SqlRepository):
    """Implements `ports.repository.judgements.JudgementRepository`."""

    def get(self, judgement_id: str) -> Judgement | None:
        return JUDGEMENTS.get(self._connection, id=judgement_id)

    def get_for_update(self, judgement_id: str) -> Judgement | None:
        return JUDGEMENTS.get(self._connection, lock=True, id=judgement_id)

    def of_evaluation(self, job_id: str) -> list[Judgement]:
        return JUDGEMENTS.where(self._connection, _judgements.job_id == job_id, order=_judgements.id.desc())

    def running(self) -> list[Judgement]:
        is_running = _judgements.state == JudgementState.RUNNING.value
        return JUDGEMENTS.where(self._connection, is_running, order=_judgements.id)

    def add(self, judgement: Judgement) -> bool:
        _add_judgement.run(self._connection, JUDGEMENTS.dump(judgement))
        return self.get(judgement.id) is not None

    def save(self, judgement: Judgement) -> None:
        JUDGEMENTS.save(self._connection, judgement)

    def answers(self, judgement_id: str) -> list[JudgeAnswer]:
        order = (_answers.number, _answers.adapter_first.desc())
        rows = self._connection.execute(ANSWERS.select.where(_answers.judgement_id == judgement_id).order_by(*order))
        return [ANSWERS.load(tuple(row)) for row in rows]

    def add_answer(self, answer: JudgeAnswer) -> None:
        _add_answer.run(self._connection, ANSWERS.dump(answer))


def delete_judgements(connection: Connection, job_id: str) -> None:
    """Delete the judgements of an evaluation. They are locked first, because answers may be arriving."""
    theirs = select(_judgements.id).where(_judgements.job_id == job_id)
    connection.execute(theirs.with_for_update())
    connection.execute(delete(tables.judge_answers).where(_answers.judgement_id.in_(theirs)))
    connection.execute(delete(tables.judgements).where(_judgements.job_id == job_id))


def remove_endpoints(connection: Connection, member_id: str) -> None:
    """Delete a member's endpoints with their keys, and pause their judgements."""
    is_running = _judgements.state == JudgementState.RUNNING.value
    paused = {"state": JudgementState.PAUSED.value, "reason": "Its owner was removed from this server."}
    theirs = (_judgements.member_id == member_id, is_running)
    connection.execute(update(tables.judgements).where(*theirs).values(paused))
    connection.execute(delete(tables.judge_endpoints).where(_endpoints.member_id == member_id))
