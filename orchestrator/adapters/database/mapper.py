"""Maps dataclasses to rows and back. The statements by primary key are compiled once (see `compiled_sql`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Connection, Table, bindparam, insert, select, update

from orchestrator.adapters.database.compiled_sql import Statement

T = TypeVar("T")


class Mapper(Generic[T]):
    """Maps one dataclass to one table.

    `enums` names the columns that contain enum members. `frozen` names those that are never updated.
    """

    def __init__(
        self,
        kind: type[T],
        table: Table,
        *,
        enums: Mapping[str, type[StrEnum]] | None = None,
        frozen: tuple[str, ...] = (),
    ) -> None:
        self.kind, self.table = kind, table
        self._enums = dict(enums or {})
        known = {f.name for f in dataclasses.fields(kind)} & set(table.c.keys())  # pyright: ignore[reportArgumentType]
        self._names = tuple(sorted(known))
        self._keys = tuple(c.name for c in table.primary_key)
        changing = [n for n in self._names if n not in self._keys and n not in frozen]
        self._insert = Statement(insert(table).values({n: bindparam(n, type_=table.c[n].type) for n in self._names}))
        self._update = Statement(
            update(table)
            .where(*(table.c[k] == bindparam(f"_{k}") for k in self._keys))
            .values({n: bindparam(n, type_=table.c[n].type) for n in changing})
        )
        self._changing = changing
        self.select = select(*(table.c[n] for n in self._names))
        by_key = self.select.where(*(table.c[k] == bindparam(k) for k in self._keys))
        self._by_key, self._by_key_locked = Statement(by_key), Statement(by_key.with_for_update())

    def load(self, row: Sequence[Any]) -> T:
        """One row as a dataclass."""
        values = dict(zip(self._names, row, strict=True))
        for name, enum in self._enums.items():
            if values[name] is not None:
                values[name] = enum(values[name])
        return self.kind(**values)

    def dump(self, item: T) -> dict[str, Any]:
        """A dataclass as column values."""
        return {n: getattr(item, n) for n in self._names}

    def get(self, connection: Connection, *, lock: bool = False, **key: Any) -> T | None:
        """The row with this primary key, or None. With `lock`, the row is locked until the transaction ends."""
        row = (self._by_key_locked if lock else self._by_key).first(connection, key)
        return None if row is None else self.load(row)

    def where(self, connection: Connection, *conditions: ColumnElement[bool], order: Any = None) -> list[T]:
        """All rows that match these conditions."""
        statement = self.select.where(*conditions)
        if order is not None:
            statement = statement.order_by(order)
        return [self.load(row) for row in connection.execute(statement)]

    def add(self, connection: Connection, *items: T) -> None:
        """Insert rows."""
        self._insert.run(connection, *map(self.dump, items))

    def save(self, connection: Connection, item: T) -> None:
        """Write every column that may change."""
        values = {n: getattr(item, n) for n in self._changing}
        self._update.run(connection, values | {f"_{k}": getattr(item, k) for k in self._keys})
