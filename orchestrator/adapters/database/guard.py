"""Keeps a database to one server, and notices when it is taken from that server.

SQLite: a lock file beside the database, and the file's identity, which is compared before each commit. PostgreSQL: an
advisory lock on a connection of its own.
"""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

import structlog
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event
from sqlalchemy.exc import DBAPIError

from orchestrator.adapters.database.unit_of_work import CONNECT_S
from orchestrator.domain.errors import ConflictError, UnavailableError

log = structlog.get_logger()

LOCK_KEY = int.from_bytes(b"trainhop")
"""PostgreSQL's advisory locks are 64-bit integers of one database."""
PATIENCE_S = 5.0
"""How long a start waits for the lock of a server that is just ending."""
RETRY_S = 2.0
_PATIENT = {
    "connect_timeout": CONNECT_S,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
"""Both ends notice within half a minute that the other one has vanished without a word."""


class DatabaseGuard(Protocol):
    """What makes this server the only one that writes to its database."""

    def pin(self) -> None:
        """The database is open now. From here on it must stay the same."""
        ...

    def check(self) -> None:
        """Raise `UnavailableError` if the database is not this server's any more. Cheap: every transaction calls it."""
        ...

    def close(self) -> None:
        """Let another server use the database."""
        ...


def guard_database(engine: Engine, *, patience_s: float = PATIENCE_S, retry_s: float = RETRY_S) -> DatabaseGuard:
    """Claim this database for this process. Raises `ConflictError` if another server uses it."""
    if engine.dialect.name == "postgresql":
        return AdvisoryLock(engine, patience_s=patience_s, retry_s=retry_s)
    return FileGuard(engine) if engine.url.database else _Unguarded()


def shown(url: URL) -> str:
    """A database's URL without credentials. Its query may have a password too."""
    return url.set(query={}).render_as_string(hide_password=True)


def _in_use(name: str) -> ConflictError:
    return ConflictError(
        f"Another server already uses the database {name}. Stop it, or give this server a database of its own with "
        "TRAINHOP_DATABASE_URL."
    )


class _Unguarded:
    """A database in memory belongs to its process."""

    def pin(self) -> None:
        return

    def check(self) -> None:
        return

    def close(self) -> None:
        return


class FileGuard:
    """Guards an SQLite file by a lock file `NAME.lock` beside it.

    SQLite goes on writing to a file that was renamed or deleted, and creates an empty one for the next connection. Both
    are refused from `pin` on.
    """

    def __init__(self, engine: Engine) -> None:
        self._path = Path(engine.url.database or "").resolve()
        self._file: tuple[int, int] | None = None
        lock = self._path.with_name(f"{self._path.name}.lock")
        self._lock = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise _in_use(str(self._path)) from error
        event.listen(engine, "do_connect", self._before_connect)

    def pin(self) -> None:
        """Note which file the path names now."""
        self._file = self._identity()

    def check(self) -> None:
        if self._file is not None and self._identity() != self._file:
            raise UnavailableError(
                "The server's database file was moved, deleted or replaced while the server runs, and nothing was "
                "changed. Put the same file back, or stop the server and start it again with the right one."
            )

    def close(self) -> None:
        os.close(self._lock)

    def _before_connect(self, *_: object) -> None:
        self.check()

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino


class AdvisoryLock:
    """Holds an advisory lock on a connection of its own for as long as the server runs.

    A thread waits on the connection's socket, so a loss is noticed at once. Until the lock is back, every transaction
    is refused: another server may have it.
    """

    def __init__(self, engine: Engine, *, patience_s: float, retry_s: float) -> None:
        self._engine = create_engine(
            engine.url, poolclass=NullPool, connect_args=_PATIENT, isolation_level="AUTOCOMMIT"
        )
        self._retry_s = retry_s
        self._held, self._stopping = threading.Event(), threading.Event()
        connection = self._lock(patience_s)
        if connection is None:
            raise _in_use(self._name)
        self._connection = connection
        self._held.set()
        self._wake_reader, self._wake_writer = os.pipe()
        self._thread = threading.Thread(target=self._watch, name="database-lock", daemon=True)
        self._thread.start()

    def pin(self) -> None:
        return

    def check(self) -> None:
        if not self._held.is_set():
            raise UnavailableError(
                "This server has lost its lock on the database, and nothing was changed. It continues by itself when "
                "the database answers and no other server uses it."
            )

    def close(self) -> None:
        self._stopping.set()
        with suppress(OSError):
            os.write(self._wake_writer, b".")
        self._thread.join(timeout=10)
        self._connection.invalidate()
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    @property
    def _name(self) -> str:
        return shown(self._engine.url)

    def _lock(self, patience_s: float) -> Connection | None:
        """A new connection with the lock, or None if another one keeps it for all that time."""
        from psycopg.errors import LockNotAvailable

        connection = self._engine.connect()
        try:
            for name in ("idle = 10", "interval = 5", "count = 3"):
                connection.exec_driver_sql(f"SET tcp_keepalives_{name}")
            connection.exec_driver_sql(f"SET lock_timeout = {max(1, int(1000 * patience_s))}")
            connection.exec_driver_sql(f"SELECT pg_advisory_lock({LOCK_KEY})")
        except DBAPIError as error:
            connection.close()
            if isinstance(error.orig, LockNotAvailable):
                return None
            raise
        return connection

    def _watch(self) -> None:
        while not self._stopping.is_set():
            driver: Any = self._connection.connection.driver_connection
            wait([driver, self._wake_reader])
            if self._stopping.is_set() or self._is_alive():
                continue
            self._held.clear()
            log.error("lost the lock on the database; nothing is scheduled until it is back", database=self._name)
            self._regain()

    def _is_alive(self) -> bool:
        """Whether the connection still answers. The server may also have sent a notice."""
        try:
            self._connection.exec_driver_sql("SELECT 1")
        except Exception:  # noqa: BLE001  whatever it is, the lock cannot be relied on
            return False
        return True

    def _regain(self) -> None:
        self._connection.invalidate()
        while not self._stopping.is_set():
            found = self._try_again()
            if found is not None:
                self._connection = found
                self._held.set()
                log.info("the lock on the database is back", database=self._name)
                return
            self._stopping.wait(self._retry_s)

    def _try_again(self) -> Connection | None:
        try:
            found = self._lock(self._retry_s)
        except Exception as error:  # noqa: BLE001  the database is away, in whatever way
            log.warning("the database does not answer", database=self._name, error=str(error))
            return None
        if found is None:
            log.error("another server uses the database; stop one of the two", database=self._name)
        return found
