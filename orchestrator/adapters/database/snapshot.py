"""A consistent copy of a database that is in use, as one SQLite file, and a database that is filled from such a copy.

SQLite is copied by its own online backup, in one read transaction. PostgreSQL is read table by table in one repeatable
read transaction, so a copy of it can be restored to either database.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, insert, make_url, select
from sqlalchemy.exc import DBAPIError

from orchestrator.adapters.database import transaction  # noqa: F401  its repositories register all tables
from orchestrator.adapters.database.guard import guard_database, shown
from orchestrator.adapters.database.instance import is_empty
from orchestrator.adapters.database.metadata import metadata
from orchestrator.adapters.database.migrate import HEAD, known_revisions, upgrade
from orchestrator.adapters.database.unit_of_work import BUSY_S, make_engine
from orchestrator.domain.errors import ConflictError, UnavailableError

ROWS_AT_ONCE = 1_000
_NAMED = (
    "SELECT key, sha256 FROM datasets",
    "SELECT key, sha256 FROM checkpoints WHERE store = 'local' AND state = 'committed' AND key != ''",
    "SELECT adapter_key, adapter_zip_sha256 FROM jobs WHERE adapter_store = 'local' AND deleted_at IS NULL",
)


def sqlite_path(url: str) -> Path | None:
    """The file of an SQLite database. None for PostgreSQL."""
    parsed = make_url(url)
    return Path(parsed.database or "") if parsed.get_backend_name() == "sqlite" else None


def take_snapshot(url: str, target: Path) -> None:
    """Write a consistent copy of the database to `target`, a new SQLite file. The database may be in use.

    Raises `ConflictError` if there is nothing to copy, `UnavailableError` if the database cannot be read, and
    `OSError` if `target` cannot be written.
    """
    source = sqlite_path(url)
    if source is None:
        _copy_postgres(url, target)
    elif not source.exists():
        raise ConflictError(
            f"There is no database {source}. Set --data-dir or TRAINHOP_DATABASE_URL as for the server."
        )
    else:
        _copy_sqlite(source, target)


def _copy_sqlite(source: Path, target: Path) -> None:
    try:
        with closing(_connect(source)) as old, closing(sqlite3.connect(target)) as new:
            old.execute("SELECT count(*) FROM sqlite_master")  # waits no longer than `BUSY_S` for a lock
            new.execute("PRAGMA synchronous = OFF")
            old.backup(new)
            new.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:
        raise _in_words(error, source, target) from error


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=BUSY_S)


def _in_words(error: sqlite3.Error, source: Path, target: Path) -> Exception:
    if "disk is full" in str(error):
        return OSError(28, "No space left on device", str(target.parent))
    return UnavailableError(f"The backup was not written: the database {source} could not be copied ({error}).")


def _copy_postgres(url: str, target: Path) -> None:
    with _disposed(url) as engine:
        _refuse_other_revision(engine, url)
        with (
            _in_plain_words(url),
            engine.connect().execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True) as source,
            _empty_copy(target) as copy,
        ):
            _copy_tables(source, copy)


@contextmanager
def _empty_copy(path: Path) -> Iterator[Connection]:
    """A new SQLite file with this version's tables, in one transaction."""
    with _disposed(_url_of(path)) as engine:
        upgrade(engine)
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA synchronous = OFF")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection
            connection.commit()
            connection.exec_driver_sql("PRAGMA journal_mode = DELETE")


def _refuse_other_revision(engine: Engine, url: str) -> None:
    with _in_plain_words(url):
        if is_empty(engine):
            raise ConflictError(f"The database {shown(make_url(url))} is empty. There is nothing to back up.")
        with engine.connect() as connection:
            found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    if found != HEAD:
        raise ConflictError(
            f"The database has revision {found}, and this version of trainhop reads {HEAD}. Back it up with the "
            "version that the server runs."
        )


def _copy_tables(source: Connection, target: Connection) -> None:
    reader = source.execution_options(stream_results=True, yield_per=ROWS_AT_ONCE)
    for table in metadata.sorted_tables:
        keys = [column.key for column in table.columns]
        for rows in reader.execute(select(table)).partitions():
            target.execute(insert(table), [dict(zip(keys, row, strict=True)) for row in rows])


def _url_of(path: Path) -> str:
    return URL.create("sqlite", database=str(path)).render_as_string()


@contextmanager
def _disposed(url: str) -> Iterator[Engine]:
    engine = make_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def _in_plain_words(url: str) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        words = " ".join(str(error.orig).split())
        raise UnavailableError(f"The database {shown(make_url(url))} could not be used: {words}") from error


def revision_of(snapshot: Path) -> str:
    """The revision of a copy's tables. Raises `ConflictError` if it is not a database of a server."""
    try:
        with closing(_connect(snapshot)) as database:
            return str(database.execute("SELECT version_num FROM alembic_version").fetchone()[0])
    except (sqlite3.Error, TypeError) as error:
        raise ConflictError("The database has no tables of trainhop. Start its server once.") from error


def instance_of(snapshot: Path) -> str:
    """The id of the instance that the copy is of. Empty for one of an earlier version."""
    with closing(_connect(snapshot)) as database:
        try:
            found = database.execute("SELECT id FROM instance").fetchone()
        except sqlite3.OperationalError:  # it had no such table
            return ""
    return str(found[0]) if found else ""


def named_files(snapshot: Path) -> dict[str, str]:
    """The keys in the local store that the copy names, with the hashes that it states. Empty for older revisions."""
    if revision_of(snapshot) != HEAD:
        return {}
    with closing(_connect(snapshot)) as database:
        return {key: sha256 or "" for query in _NAMED for key, sha256 in database.execute(query) if key}


def is_newer(revision: str) -> bool:
    """Whether this version of trainhop does not know the revision."""
    return revision not in known_revisions()


@contextmanager
def filled(snapshot: Path, url: str) -> Iterator[None]:
    """Fill an empty PostgreSQL database from a copy, in one transaction that ends with the block.

    Raises `ConflictError` if the database is in use or has rows, and `UnavailableError` if it refuses the rows.
    """
    with _disposed(_url_of(snapshot)) as old, _disposed(url) as engine, _in_plain_words(url):
        upgrade(old)
        guard = guard_database(engine)
        try:
            if not is_empty(engine):
                name = shown(make_url(url))
                raise ConflictError(f"The database {name} is in use. A backup is restored to an empty one only.")
            upgrade(engine)
            with old.connect() as source, engine.begin() as target:
                _copy_tables(source, target)
                _continue_numbers(target)
                yield
        finally:
            guard.close()


def _continue_numbers(target: Connection) -> None:
    """The database gives out numbers of events by a counter of its own, which starts after the largest one."""
    target.exec_driver_sql(
        "SELECT setval(pg_get_serial_sequence('events', 'id'), coalesce(max(id), 1), max(id) IS NOT NULL) FROM events"
    )
