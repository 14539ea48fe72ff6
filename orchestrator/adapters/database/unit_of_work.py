"""Transactions: group commit by one writer on SQLite, ordinary pooled transactions on PostgreSQL."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, make_url

from orchestrator.adapters.database.transaction import SqlTransaction

MAX_GROUP = 64
"""Transactions that may share one fsync; bounds how long the first of them waits."""


def make_engine(url: str) -> Engine:
    """An engine for SQLite (WAL, `synchronous=FULL`) or PostgreSQL."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        return create_engine(parsed.set(drivername="postgresql+psycopg"), pool_size=10, max_overflow=20)
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, connect_args={"check_same_thread": False, "timeout": 30}, pool_size=20)

    @event.listens_for(engine, "connect")
    def _set_pragmas(connection, _record) -> None:  # noqa: ANN001  # pyright: ignore[reportUnusedFunction]
        connection.isolation_level = None  # BEGIN is ours to say: the driver's own is late and never immediate
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def make_unit_of_work(engine: Engine) -> Callable[[], AbstractContextManager[SqlTransaction]]:
    """The `persistence.UnitOfWork` that suits the database."""
    return GroupCommit(engine).transaction if engine.dialect.name == "sqlite" else _Pooled(engine).transaction


class _Pooled:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @contextmanager
    def transaction(self) -> Generator[SqlTransaction]:
        with self._engine.begin() as connection:
            transaction = SqlTransaction(connection)
            yield transaction
            transaction.flush()


class _Ticket:
    """One transaction's place in a group: set once the group is on disk, with the error if that failed."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.error: BaseException | None = None


class GroupCommit:
    """Serialises writers on one connection and lets those that queue up share one fsync.

    SQLite has one writer whatever we do, and its own waiting is a sleep. Each transaction runs in a savepoint; the last
    of a queue commits for all, and nobody returns before the commit. A failed commit fails every member of the group.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Connection | None = None
        self._say: Callable[[str], object] = lambda _: None
        self._turn = threading.Lock()
        self._counting = threading.Lock()
        self._waiting = 0
        self._group: list[_Ticket] = []

    @contextmanager
    def transaction(self) -> Generator[SqlTransaction]:
        """One durable transaction; see `persistence.UnitOfWork`."""
        with self._counting:
            self._waiting += 1
        ticket = _Ticket()
        with self._turn:
            with self._counting:
                self._waiting -= 1
            connection = self._begin()
            try:
                with self._savepoint(connection) as transaction:
                    yield transaction
                self._group.append(ticket)
            finally:
                self._settle()
        ticket.done.wait()
        if ticket.error is not None:
            raise ticket.error

    def _begin(self) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            # The driver's own connection: four statements surround every transaction, and SQLAlchemy's way costs more
            # than running them.
            self._say = self._connection.connection.driver_connection.execute  # pyright: ignore[reportOptionalMemberAccess]
        if not self._group:
            self._say("BEGIN IMMEDIATE")
        return self._connection

    @contextmanager
    def _savepoint(self, connection: Connection) -> Generator[SqlTransaction]:
        self._say("SAVEPOINT one")
        try:
            transaction = SqlTransaction(connection)
            yield transaction
            transaction.flush()
        except BaseException:
            self._say("ROLLBACK TO one")
            raise
        finally:
            self._say("RELEASE one")

    def _settle(self) -> None:
        """Commit the group unless somebody is about to join it."""
        with self._counting:
            more = self._waiting > 0 and len(self._group) < MAX_GROUP
        if more and self._group:
            return
        error: BaseException | None = None
        try:
            self._say("COMMIT")
        except Exception as failure:  # noqa: BLE001  whatever went wrong is every member's error
            error = failure
            with suppress(sqlite3.Error):  # a full disk may have rolled back already
                self._say("ROLLBACK")
        for ticket in self._group:
            ticket.error = error
            ticket.done.set()
        self._group.clear()
