"""What all tables share: the metadata with the names of keys and indexes, and the type of ids."""

from __future__ import annotations

from sqlalchemy import MetaData, String

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def short_id() -> String:
    """An id, a hash or a name of at most 64 characters."""
    return String(64)
