"""The repository of pushes to the Hugging Face hub."""

from __future__ import annotations

from sqlalchemy import Connection, and_, or_, select, update

from orchestrator.adapters.database import model_tables
from orchestrator.adapters.database.mapper import Mapper
from orchestrator.adapters.database.push_tables import pushes
from orchestrator.adapters.database.repository import SqlRepository
from orchestrator.domain.pushes import Push, PushState

PUSHES = Mapper(Push, pushes, enums={"state": PushState}, frozen=("job_id", "member_id", "repo", "created_at"))
_pushes = pushes.c
_IS_RUNNING = _pushes.state == PushState.RUNNING.value


class SqlPushRepository(SqlRepository):
    """Implements `ports.repository.pushes.PushRepository`."""

    def get(self, push_id: str) -> Push | None:
        return PUSHES.get(self._connection, id=push_id)

    def get_for_update(self, push_id: str) -> Push | None:
        return PUSHES.get(self._connection, lock=True, id=push_id)

    def of_job(self, job_id: str) -> list[Push]:
        return PUSHES.where(self._connection, _pushes.job_id == job_id, order=_pushes.id.desc())

    def running_of_job(self, job_id: str) -> Push | None:
        return next(iter(PUSHES.where(self._connection, _pushes.job_id == job_id, _IS_RUNNING)), None)

    def running(self) -> list[Push]:
        return PUSHES.where(self._connection, _IS_RUNNING, order=_pushes.id)

    def akin(self, push: Push) -> list[str]:
        mine, other = model_tables.candidates.alias(), model_tables.candidates.alias()
        same_model = and_(other.c.member_id == mine.c.member_id, other.c.model == mine.c.model)
        of_models = select(other.c.job_id).join(mine, same_model).where(mine.c.job_id == push.job_id)
        is_akin = or_(_pushes.job_id == push.job_id, _pushes.job_id.in_(of_models))
        query = select(_pushes.id).where(_pushes.repo == push.repo, is_akin)
        return list(self._connection.execute(query).scalars())

    def add(self, push: Push) -> None:
        PUSHES.add(self._connection, push)

    def save(self, push: Push) -> None:
        PUSHES.save(self._connection, push)


def end_pushes(connection: Connection, member_id: str) -> None:
    """End the running pushes of a member who is removed."""
    ended = {"state": PushState.FAILED.value, "reason": "Its owner was removed from this server."}
    connection.execute(update(pushes).where(_pushes.member_id == member_id, _IS_RUNNING).values(ended))
