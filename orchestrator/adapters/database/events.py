"""The repository of events."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, func, insert, select

from orchestrator.adapters.database import tables
from orchestrator.adapters.database.compiled_sql import Statement
from orchestrator.adapters.database.mapper import Mapper
from orchestrator.adapters.database.repository import SqlRepository
from orchestrator.domain.jobs import Event

EVENTS = Mapper(Event, tables.events)
_events = tables.events.c
_EVENT_LOCK = 7_265_746
"""An arbitrary constant. On PostgreSQL events are numbered under this advisory lock, so ids become visible in order."""

_add_event = Statement(
    insert(tables.events).values({c.name: bindparam(c.name, type_=c.type) for c in _events if c.name != "id"})
)
_number_events = Statement(select(func.pg_advisory_xact_lock(_EVENT_LOCK)))


class SqlEventRepository(SqlRepository):
    """Implements `ports.repository.jobs.EventRepository`."""

    def after(self, event_id: int, *, job_id: str | None = None, limit: int) -> list[Event]:
        conditions = [_events.id > event_id] + ([_events.job_id == job_id] if job_id else [])
        statement = EVENTS.select.where(*conditions).order_by(_events.id).limit(limit)
        return [EVENTS.load(row) for row in self._connection.execute(statement)]

    def of_kind(self, job_id: str, kind: str) -> list[Event]:
        statement = EVENTS.select.where(_events.job_id == job_id, _events.kind == kind).order_by(_events.id)
        return [EVENTS.load(row) for row in self._connection.execute(statement)]

    def newest_id(self) -> int:
        return self._connection.execute(select(func.max(_events.id))).scalar() or 0


def insert_events(connection: Connection, events: list[Event]) -> None:
    """Insert the events and number them. Call it last in a transaction: on PostgreSQL others wait until the commit."""
    if connection.dialect.name == "postgresql":
        _number_events.run(connection, {})
    _add_event.run(connection, *({k: v for k, v in EVENTS.dump(e).items() if k != "id"} for e in events))
