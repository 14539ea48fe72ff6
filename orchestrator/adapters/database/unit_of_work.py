"""Transactions: group commit by one writer on SQLite, ordinary pooled transactions on PostgreSQL."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import OperationalError, TimeoutError  # noqa: A004  of the pool

from orchestrator.adapters.database.transaction import SqlTransaction
from orchestrator.domain.errors import UnavailableError

MAX_GROUP = 64
"""Maximum transactions that share one fsync. It bounds how long the first of them waits."""
BUSY_S = 15.0
"""How long SQLite waits for another process that has locked the file. A report may wait for a read and a write."""
CONNECT_S = 10
"""How long a connection to PostgreSQL may take."""
LOCKED = (
    "Another program keeps the database locked, and nothing was changed. Try again, and end that program if this lasts."
)


def make_engine(url: str, *, busy_s: float = BUSY_S) -> Engine:
    """An engine for SQLite (WAL, `synchronous=FULL`) or PostgreSQL. `busy_s` is for SQLite: see `BUSY_S`."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        return create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_size=10,
            max_overflow=20,
            connect_args={"connect_timeout": CONNECT_S},
        )
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, connect_args={"check_same_thread": False, "timeout": busy_s}, pool_size=20)

    @event.listens_for(engine, "connect")
    def _set_pragmas(connection, _record) -> None:  # noqa: ANN001  # pyright: ignore[reportUnusedFunction]
        # we send BEGIN, because the driver sends it late and never as BEGIN IMMEDIATE
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={int(1000 * busy_s)}"):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def make_unit_of_work(
    engine: Engine, check: Callable[[], None] = lambda: None
) -> Callable[[], AbstractContextManager[SqlTransaction]]:
    """The `ports.repository.UnitOfWork` for this database.

    `check` runs before each commit. It raises if the database is not this server's any more.
    """
    of = GroupCommit if engine.dialect.name == "sqlite" else _Pooled
    return of(engine, check).transaction


class _Pooled:
    def __init__(self, engine: Engine, check: Callable[[], None]) -> None:
        self._engine, self._check = engine, check

    @contextmanager
    def transaction(self) -> Generator[SqlTransaction]:
        self._check()
        with self._connect() as connection, connection.begin():
            transaction = SqlTransaction(connection)
            yield transaction
            transaction.flush()
            self._check()

    def _connect(self) -> Connection:
        try:
            return self._engine.connect()
        except (OperationalError, TimeoutError) as error:
            raise UnavailableError("The database does not answer, and nothing was changed. Try again.") from error


class _Ticket:
    """One transaction in a group. The event is set after the group's commit, with the error if the commit failed."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.error: BaseException | None = None


class GroupCommit:
    """Serialises writers on one connection. Writers that queue up share one fsync.

    SQLite allows one writer, and waits for it by sleeping. Here each transaction runs in a savepoint. The last one of a
    queue commits for all, and no transaction returns before the commit. If the commit fails, every transaction of the
    group fails. While another process has the file locked, all transactions that wait fail together: each would
    otherwise wait for the lock anew, one after the other.
    """

    def __init__(self, engine: Engine, check: Callable[[], None] = lambda: None) -> None:
        self._engine, self._check = engine, check
        self._locked_at = 0.0
        self._connection: Connection | None = None
        self._say: Callable[[str], object] = lambda _: None
        self._turn = threading.Lock()
        self._counting = threading.Lock()
        self._waiting = 0
        self._group: list[_Ticket] = []

    @contextmanager
    def transaction(self) -> Generator[SqlTransaction]:
        """One durable transaction. See `ports.repository.UnitOfWork`."""
        with self._counting:
            self._waiting += 1
        ticket, since = _Ticket(), time.monotonic()
        with self._turn:
            with self._counting:
                self._waiting -= 1
            connection = self._begin(since)
            try:
                with self._savepoint(connection) as transaction:
                    yield transaction
                self._group.append(ticket)
            finally:
                self._settle()
        ticket.done.wait()
        if ticket.error is not None:
            raise ticket.error

    def _begin(self, since: float) -> Connection:
        """The connection, in a transaction. Raises `UnavailableError` if another process keeps the file locked."""
        if self._group and self._connection is not None:
            return self._connection
        if self._locked_at > since:
            raise UnavailableError(LOCKED)
        try:
            return self._begin_group()
        except (sqlite3.OperationalError, OperationalError) as error:
            if "locked" not in str(error):
                raise
            self._locked_at = time.monotonic()
            raise UnavailableError(LOCKED) from error

    def _begin_group(self) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            # The driver's own connection. Four statements surround each transaction, and running them through
            # SQLAlchemy would cost more than the statements do.
            driver: Any = self._connection.connection.driver_connection
            self._say = driver.execute
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
        """Commit the group unless another transaction is about to join it."""
        with self._counting:
            more = self._waiting > 0 and len(self._group) < MAX_GROUP
        if more and self._group:
            return
        error: BaseException | None = None
        try:
            self._check()
            self._say("COMMIT")
        except Exception as failure:  # noqa: BLE001  any error is the error of every transaction in the group
            error = failure
            with suppress(sqlite3.Error):  # a full disk may have rolled back already
                self._say("ROLLBACK")
        for ticket in self._group:
            ticket.error = error
            ticket.done.set()
        self._group.clear()
