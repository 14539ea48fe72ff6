"""The repository of links to pages of jobs."""

from __future__ import annotations

from sqlalchemy import Connection, update

from orchestrator.adapters.database.mapper import Mapper
from orchestrator.adapters.database.repository import SqlRepository
from orchestrator.adapters.database.share_tables import shares
from orchestrator.domain.shares import Share

SHARES = Mapper(Share, shares, frozen=("job_id", "member_id", "secret_hash", "created_at"))
_shares = shares.c


class SqlShareRepository(SqlRepository):
    """Implements `ports.repository.shares.ShareRepository`."""

    def get(self, share_id: str) -> Share | None:
        return SHARES.get(self._connection, lock=True, id=share_id)

    def get_by_hash(self, secret_hash: str) -> Share | None:
        return next(iter(SHARES.where(self._connection, _shares.secret_hash == secret_hash)), None)

    def of_job(self, job_id: str) -> list[Share]:
        return SHARES.where(self._connection, _shares.job_id == job_id, order=_shares.id.desc())

    def add(self, share: Share) -> None:
        SHARES.add(self._connection, share)

    def save(self, share: Share) -> None:
        SHARES.save(self._connection, share)


def revoke_shares(connection: Connection, member_id: str, at: float | None) -> None:
    """Revoke the links of a member who is removed."""
    theirs = (_shares.member_id == member_id, _shares.revoked_at.is_(None))
    connection.execute(update(shares).where(*theirs).values(revoked_at=at))
