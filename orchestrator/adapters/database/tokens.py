"""The repository of access tokens."""

from __future__ import annotations

from sqlalchemy import delete, insert, select

from orchestrator.adapters.database import tables
from orchestrator.adapters.database.mapper import Mapper
from orchestrator.adapters.database.repository import SqlRepository
from orchestrator.domain.accounts import Role, Token

TOKENS = Mapper(Token, tables.tokens, enums={"role": Role})
_tokens = tables.tokens.c


class SqlTokenRepository(SqlRepository):
    """Implements `ports.repository.accounts.TokenRepository`."""

    def get_by_hash(self, token_hash: str) -> Token | None:
        found = TOKENS.where(self._connection, _tokens.hash == token_hash)
        return found[0] if found else None

    def all(self, member_id: str | None = None) -> list[Token]:
        conditions = [_tokens.member_id == member_id] if member_id else []
        return TOKENS.where(self._connection, *conditions, order=_tokens.created_at)

    def add(self, token: Token, token_hash: str) -> None:
        self._connection.execute(insert(tables.tokens), [TOKENS.dump(token) | {"hash": token_hash}])

    def delete(self, token_id: str) -> None:
        self._connection.execute(delete(tables.tokens).where(_tokens.id == token_id))

    def delete_expired(self, before: float, limit: int) -> int:
        expired = select(_tokens.id).where(_tokens.expires_at < before).limit(limit)
        return self._connection.execute(delete(tables.tokens).where(_tokens.id.in_(expired))).rowcount
