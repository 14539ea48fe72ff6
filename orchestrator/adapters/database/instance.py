"""The instance's id in the database, and whether a database is in use at all."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import ColumnElement, Connection, Engine, Table, delete, exists, func, insert, inspect, select

from orchestrator.adapters.database import judge_tables, tables, tracking_tables
from orchestrator.adapters.database.leases import IS_LIVE

_SEALED = (
    (tables.accounts, "credentials"),
    (tables.stores, "credentials"),
    (tables.channels, "sealed"),
    (tables.members, "hub_token"),
    (judge_tables.judge_endpoints, "sealed"),
    (tracking_tables.tracker_logins, "sealed"),
)


def is_empty(engine: Engine) -> bool:
    """Whether no server has finished a start on this database. A missing SQLite file is not created."""
    if engine.dialect.name == "sqlite" and (name := engine.url.database):
        path = Path(name)
        if not path.exists() or path.stat().st_size == 0:
            return True
    with engine.connect() as connection:
        known = inspect(connection)
        used = (t for t in (tables.members, tables.instance) if known.has_table(t.name))
        return not any(connection.scalar(select(exists().select_from(table))) for table in used)


def read_id(engine: Engine) -> str | None:
    """The id of the instance that uses this database, if one has noted it."""
    with engine.connect() as connection:
        return connection.scalar(select(tables.instance.c.id))


def write_id(connection: Connection, instance_id: str) -> None:
    """Note the instance that uses this database, inside the caller's transaction."""
    if connection.scalar(select(tables.instance.c.id)) != instance_id:
        connection.execute(delete(tables.instance))
        connection.execute(insert(tables.instance).values(id=instance_id))


def count_sealed(engine: Engine) -> int:
    """How many credentials the vault's key protects."""
    with engine.connect() as connection:
        return sum(_count(connection, table, table.c[column] != "") for table, column in _SEALED)


def count_live_sessions(engine: Engine) -> int:
    """How many sessions are live, and so use tokens made with the instance's key."""
    with engine.connect() as connection:
        return _count(connection, tables.leases, IS_LIVE)


def _count(connection: Connection, table: Table, which: ColumnElement[bool]) -> int:
    return connection.execute(select(func.count()).select_from(table).where(which)).scalar_one()
