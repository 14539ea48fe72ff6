"""The repository of the settings for all members: one row, which an upgraded database does not have at first."""

from __future__ import annotations

from sqlalchemy import delete, insert, select

from orchestrator.adapters.database import tables
from orchestrator.adapters.database.repository import SqlRepository
from orchestrator.domain.accounts import Team

ID = "team"


class SqlTeamRepository(SqlRepository):
    """Implements `ports.repository.accounts.TeamRepository`."""

    def get(self) -> Team:
        return Team(everyone_sees_jobs=bool(self._connection.scalar(select(tables.team.c.everyone_sees_jobs))))

    def save(self, team: Team) -> None:
        self._connection.execute(delete(tables.team))
        self._connection.execute(insert(tables.team).values(id=ID, everyone_sees_jobs=team.everyone_sees_jobs))
