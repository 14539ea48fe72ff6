"""The repository of accounts at providers."""

from __future__ import annotations

from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError

from orchestrator.adapters.database import tables
from orchestrator.adapters.database.compiled_sql import Statement
from orchestrator.adapters.database.mapper import Mapper
from orchestrator.adapters.database.repository import SqlRepository
from orchestrator.domain.accounts import Account
from orchestrator.domain.errors import ConflictError

ACCOUNTS = Mapper(Account, tables.accounts)
_all = Statement(ACCOUNTS.select.order_by(tables.accounts.c.created_at))


class SqlAccountRepository(SqlRepository):
    """Implements `ports.repository.accounts.AccountRepository`."""

    def get(self, account_id: str) -> Account | None:
        return ACCOUNTS.get(self._connection, id=account_id)

    def all(self) -> list[Account]:
        return [ACCOUNTS.load(row) for row in _all.rows(self._connection)]

    def add(self, account: Account) -> None:
        try:
            ACCOUNTS.add(self._connection, account)
        except IntegrityError as error:
            raise ConflictError(
                f"The name {account.name} is taken, or this member already has an account at {account.provider}. "
                "Only one account per member and provider is allowed."
            ) from error

    def save(self, account: Account) -> None:
        ACCOUNTS.save(self._connection, account)

    def delete(self, account_id: str) -> None:
        self._connection.execute(delete(tables.accounts).where(tables.accounts.c.id == account_id))
