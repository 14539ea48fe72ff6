"""The base class of all repositories: methods over the connection of one transaction."""

from __future__ import annotations

from sqlalchemy import Connection


class SqlRepository:
    """A repository of one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
