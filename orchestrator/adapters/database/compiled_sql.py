"""Statements compiled once for each database and run on the driver's own cursor.

SQLAlchemy still writes the SQL and converts the values. Executing through SQLAlchemy would cost more than the statement
does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import JSON, Boolean, Connection, Dialect, Executable, Table, bindparam
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql import ClauseElement, Select

Convert = Callable[[Any], Any]
Values = Mapping[str, Any]


class _Compiled:
    """One statement in the SQL of one database."""

    def __init__(self, statement: ClauseElement, dialect: Dialect) -> None:
        compiled: Any = statement.compile(dialect=dialect)
        self.sql = str(compiled)
        self._constants: dict[str, Any] = {n: b.value for n, b in compiled.binds.items() if not b.required}
        self._order: list[str] | None = compiled.positiontup if compiled.positional else None
        self._bind = _present(
            {n: b.type.dialect_impl(dialect).bind_processor(dialect) for n, b in compiled.binds.items()}
        )
        columns = statement.selected_columns if isinstance(statement, Select) else ()
        self._result = _present(
            {
                place: column.type.dialect_impl(dialect).result_processor(dialect, None)
                for place, column in enumerate(columns)
                if isinstance(column.type, (JSON, Boolean))  # both drivers return all other types unchanged
            }
        )

    def parameters(self, values: Values) -> Any:
        """The values as the driver takes them."""
        found = {**self._constants, **values}
        for name, convert in self._bind.items():
            found[name] = convert(found[name])
        return found if self._order is None else [found[name] for name in self._order]

    def row(self, raw: Sequence[Any]) -> Sequence[Any]:
        """A row as Python values."""
        if not self._result:
            return raw
        row = list(raw)
        for place, convert in self._result.items():
            row[place] = convert(row[place])
        return row


def _present(found: dict[Any, Convert | None]) -> dict[Any, Convert]:
    return {key: convert for key, convert in found.items() if convert is not None}


class Statement:
    """A statement with named parameters only. It raises SQLAlchemy's errors."""

    def __init__(self, statement: Executable) -> None:
        assert isinstance(statement, ClauseElement)
        self._statement = statement
        self._compiled: dict[str, _Compiled] = {}

    def rows(self, connection: Connection, values: Values | None = None) -> list[Sequence[Any]]:
        """All rows of the result."""
        compiled = self._for(connection)
        cursor = self._execute(connection, compiled.sql, compiled.parameters(values or {}))
        return [compiled.row(raw) for raw in cursor.fetchall()]

    def first(self, connection: Connection, values: Values) -> Sequence[Any] | None:
        """The first row of the result, or None."""
        rows = self.rows(connection, values)
        return rows[0] if rows else None

    def run(self, connection: Connection, *values: Values) -> None:
        """Execute it once for each of these."""
        compiled = self._for(connection)
        for each in values:
            self._execute(connection, compiled.sql, compiled.parameters(each))

    def _for(self, connection: Connection) -> _Compiled:
        found = self._compiled.get(connection.dialect.name)
        if found is None:
            found = self._compiled[connection.dialect.name] = _Compiled(self._statement, connection.dialect)
        return found

    @staticmethod
    def _execute(connection: Connection, sql: str, parameters: Any) -> Any:
        cursor = connection.connection.cursor()
        try:
            cursor.execute(sql, parameters)
        except connection.dialect.loaded_dbapi.Error as error:
            raise DBAPIError.instance(
                sql, parameters, error, connection.dialect.loaded_dbapi.Error, dialect=connection.dialect
            ) from error
        return cursor


INSERTS: dict[str, Callable[..., Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
"""The insert of each database, which can skip a row that exists."""


class Upsert:
    """An insert of whole rows for each database. For an existing row it only updates the columns in `changing`.

    Without `changing`, rows that violate a unique index are skipped.
    """

    def __init__(self, table: Table, changing: tuple[str, ...] = ()) -> None:
        self._by_dialect = {dialect: _upsert(insert(table), table, changing) for dialect, insert in INSERTS.items()}

    def run(self, connection: Connection, *values: Values) -> None:
        """Insert these rows."""
        self._by_dialect[connection.dialect.name].run(connection, *values)


def _upsert(insert: Any, table: Table, changing: tuple[str, ...]) -> Statement:
    statement = insert.values({c.name: bindparam(c.name, type_=c.type) for c in table.c})
    if not changing:
        return Statement(statement.on_conflict_do_nothing())
    new = {n: statement.excluded[n] for n in changing}
    return Statement(statement.on_conflict_do_update(index_elements=[c.name for c in table.primary_key], set_=new))
