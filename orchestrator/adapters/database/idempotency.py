"""The repository of replies to requests that carried an Idempotency-Key."""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, select

from orchestrator.adapters.database import tables
from orchestrator.adapters.database.compiled_sql import INSERTS
from orchestrator.adapters.database.repository import SqlRepository
from orchestrator.domain.errors import KeyTakenError

_remembered = tables.remembered.c


class SqlIdempotencyRepository(SqlRepository):
    """Implements `ports.repository.accounts.IdempotencyRepository`."""

    def get(self, member_id: str, key: str) -> tuple[str, dict[str, Any]] | None:
        this = (_remembered.member_id == member_id, _remembered.key == key)
        row = self._connection.execute(select(_remembered.request_hash, _remembered.answer).where(*this)).first()
        return None if row is None else (row.request_hash, row.answer)

    def add(self, member_id: str, key: str, request_hash: str, reply: dict[str, Any], at: float) -> None:
        values = {"member_id": member_id, "key": key, "request_hash": request_hash, "answer": reply, "at": at}
        insert = INSERTS[self._connection.dialect.name](tables.remembered)
        # A broken unique index would abort the transaction, and with it all writes that share it.
        added = insert.values(values).on_conflict_do_nothing().returning(_remembered.key)
        if self._connection.execute(added).first() is None:
            raise KeyTakenError("A request with this Idempotency-Key is in progress. Try again.")

    def delete_expired(self, before: float) -> None:
        self._connection.execute(delete(tables.remembered).where(_remembered.at < before))
