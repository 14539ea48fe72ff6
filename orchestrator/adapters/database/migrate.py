"""Bringing a database to this version, and refusing one from a newer version."""

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


def upgrade(engine: Engine) -> None:
    """Run what is missing; raises `ConflictError` for a database that only a newer version understands."""
    with engine.connect() as connection:
        if _version(connection) == HEAD:
            return  # importing alembic takes seconds; a database at head needs none of it
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
                f"the database is at revision {found}, which this version ({HEAD}) does not know: it was made by a newer "
                "trainhop; upgrade trainhop or use another data folder"
            )
        connection.rollback()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _version(connection) -> str | None:  # noqa: ANN001  a SQLAlchemy connection
    from sqlalchemy import inspect, text

    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


HEAD = "0012"
"""The newest revision under `migrations/versions`; a test compares the two."""
