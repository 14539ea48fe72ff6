"""Creates the tables in an empty database, and migrates another to this version. Refuses one of a newer version."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    insert,
    inspect,
    select,
)

import orchestrator
from orchestrator.adapters import database
from orchestrator.adapters.database.metadata import metadata
from orchestrator.domain.errors import ConflictError

_versions = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
"""Alembic's own table."""


def scripts() -> Path:
    """The alembic folder: inside the wheel, or beside the package in a checkout."""
    package = Path(orchestrator.__file__).parent
    inside = package / "migrations"
    return inside if inside.is_dir() else package.parent / "migrations"


def known_revisions() -> frozenset[str]:
    """The revisions that this version can migrate from."""
    return frozenset(path.name.partition("_")[0] for path in (scripts() / "versions").glob("[0-9]*_*.py"))


def upgrade(engine: Engine) -> None:
    """Create all tables, or run the missing migrations. Raises `ConflictError` for a database of a newer version.

    Neither leaves anything behind if it is interrupted.
    """
    with engine.connect() as connection:
        if _version(connection) == HEAD:
            return
        connection.rollback()
        if _create(connection):
            return
    _migrate(engine)


def _create(connection: Connection) -> bool:
    """Create the tables as they are after the newest revision, if there are none.

    All revisions in turn take ten times as long, and alembic's import takes seconds. A test compares the results.
    """
    with _exclusive(connection):
        if inspect(connection).get_table_names():
            return False
        every_table().create_all(connection, checkfirst=False)
        _versions.create(connection)
        connection.execute(insert(_versions).values(version_num=HEAD))
    return True


@contextmanager
def _exclusive(connection: Connection) -> Generator[None]:
    """A transaction that contains the creation of tables on SQLite too."""
    if connection.dialect.name != "sqlite":
        with connection.begin():
            yield
        return
    connection.execution_options(isolation_level="AUTOCOMMIT")
    connection.exec_driver_sql("BEGIN EXCLUSIVE")
    try:
        yield
    except BaseException:
        connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")


def every_table() -> MetaData:
    """The tables of all modules beside this one."""
    for module in pkgutil.iter_modules(database.__path__):
        if module.name.endswith("tables"):
            importlib.import_module(f"{database.__name__}.{module.name}")
    return metadata


def _migrate(engine: Engine) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(scripts()))
    known = {revision.revision for revision in ScriptDirectory.from_config(config).walk_revisions()}
    with engine.connect() as connection:
        found = _version(connection)
        if found is not None and found not in known:
            raise ConflictError(
                f"The database has revision {found}, which this version ({HEAD}) does not know. It was "
                "created by a newer "
                "trainhop. Upgrade trainhop, or use another data folder."
            )
        connection.rollback()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.scalar(select(_versions.c.version_num))


HEAD = "0026"
"""The newest revision under `migrations/versions`. A test compares the two."""
