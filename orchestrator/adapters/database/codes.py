"""The repository of one-time codes, by which notebooks claim jobs and machines join."""

from __future__ import annotations

from sqlalchemy import delete

from orchestrator.adapters.database import tables
from orchestrator.adapters.database.mapper import Mapper
from orchestrator.adapters.database.repository import SqlRepository
from orchestrator.domain.accounts import OneTimeCode

CODES = Mapper(
    OneTimeCode,
    tables.claims,
    frozen=("job_id", "member_id", "created_at", "expires_at", "store", "provider", "shared"),
)


class SqlCodeRepository(SqlRepository):
    """Implements `ports.repository.accounts.CodeRepository`."""

    def get(self, code_hash: str) -> OneTimeCode | None:
        return CODES.get(self._connection, lock=True, code_hash=code_hash)

    def with_mailbox(self) -> list[OneTimeCode]:
        return CODES.where(self._connection, tables.claims.c.mailbox != "")

    def add(self, code: OneTimeCode) -> None:
        CODES.add(self._connection, code)

    def save(self, code: OneTimeCode) -> None:
        CODES.save(self._connection, code)

    def delete_expired(self, before: float) -> None:
        self._connection.execute(delete(tables.claims).where(tables.claims.c.expires_at < before))
