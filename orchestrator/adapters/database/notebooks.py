"""The part of a transaction that keeps notebooks' codes."""

from __future__ import annotations

from sqlalchemy import Connection, delete

from orchestrator.adapters.database import tables
from orchestrator.adapters.database.mapper import CLAIMS
from orchestrator.domain.model import OneTimeCode


class ClaimRows:
    """See `persistence.Transaction`."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def claim(self, code_hash: str) -> OneTimeCode | None:
        return CLAIMS.get(self.connection, lock=True, code_hash=code_hash)

    def add_claim(self, claim: OneTimeCode) -> None:
        CLAIMS.add(self.connection, claim)

    def save_claim(self, claim: OneTimeCode) -> None:
        CLAIMS.save(self.connection, claim)

    def open_mailboxes(self) -> list[OneTimeCode]:
        return CLAIMS.where(self.connection, tables.claims.c.mailbox != "")

    def forget_claims(self, before: float) -> None:
        self.connection.execute(delete(tables.claims).where(tables.claims.c.expires_at < before))
