"""Migrates a database to this version. Refuses a database of a newer version."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine

import orchestrator
from orchestrator.domain.errors import ConflictError


def scripts() -> Path:
    """The alembic folder: inside the wheel, or beside the package in a checkout."""
    package = Path(orchestrator.__file__).parent
    inside = package / "migrations"
    return inside if inside.is_dir() else package.parent / "migrations"


def known_revisions() -> frozenset[str]:
    """The revisions that this version can migrate from."""
    return frozenset(path.name.partition("_")[0] for path in (scripts() / "versions").glob("[0-9]*_*.py"))


def upgrade(engine: Engine) -> None:
    """Run the missing migrations. Raises `ConflictError` for a database of a newer version."""
    with engine.connect() as connection:
        if _version(connection) == HEAD:
            return  # importing alembic takes seconds, and a database at head does not need it
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


def _version(connection) -> str | None:  # noqa: ANN001  a SQLAlchemy connection
    from sqlalchemy import inspect, text

    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


HEAD = "0025"
"""The newest revision under `migrations/versions`. A test compares the two."""
