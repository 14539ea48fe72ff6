"""The repository of leases."""

from __future__ import annotations

from sqlalchemy import bindparam, func, literal_column, select, update
from sqlalchemy.exc import IntegrityError

from orchestrator.adapters.database import tables
from orchestrator.adapters.database.compiled_sql import Statement
from orchestrator.adapters.database.mapper import Mapper
from orchestrator.adapters.database.repository import SqlRepository
from orchestrator.domain.errors import ConflictError
from orchestrator.domain.jobs import Lease
from orchestrator.domain.lifecycle import EndReason, LeaseState

LEASES = Mapper(
    Lease,
    tables.leases,
    enums={"state": LeaseState, "end_reason": EndReason},
    frozen=(
        *("job_id", "member_id", "account_id", "provider", "fence"),
        *("token_hash", "created_at", "budget_s", "offline", "store"),
    ),
)
_leases = tables.leases.c
IS_LIVE = _leases.state.in_([literal_column(f"'{s}'") for s in LeaseState if s.is_live])
"""Written exactly like the condition of the partial index, with literals.

With bound parameters SQLite would not use that index.
"""

_live = Statement(LEASES.select.where(IS_LIVE))
_live_of_job = Statement(LEASES.select.where(IS_LIVE, _leases.job_id == bindparam("job")))
_lock_job_of = Statement(
    select(tables.jobs.c.id)
    .where(tables.jobs.c.id == select(_leases.job_id).where(_leases.id == bindparam("id")).scalar_subquery())
    .with_for_update()
)
_uncollected = Statement(LEASES.select.where(_leases.collected_at.is_(None), ~IS_LIVE))
_this_lease = update(tables.leases).where(_leases.id == bindparam("lease"))
_set_external_id = Statement(_this_lease.values(external_id=bindparam("external")))
_set_collected = Statement(_this_lease.values(collected_at=bindparam("at")))
_counts = Statement(
    select(_leases.member_id, _leases.account_id, func.count())
    .where(IS_LIVE)
    .group_by(_leases.member_id, _leases.account_id)
)


class SqlLeaseRepository(SqlRepository):
    """Implements `ports.repository.jobs.LeaseRepository`."""

    def get(self, lease_id: str) -> Lease | None:
        if self._connection.dialect.name == "postgresql":
            # Always lock the job before the lease: transactions that lock them in different orders would wait forever.
            _lock_job_of.run(self._connection, {"id": lease_id})
        return LEASES.get(self._connection, lock=True, id=lease_id)

    def add(self, lease: Lease) -> None:
        try:
            LEASES.add(self._connection, lease)
        except IntegrityError as error:
            raise ConflictError(f"Job {lease.job_id} already has a live lease.") from error

    def save(self, lease: Lease) -> None:
        LEASES.save(self._connection, lease)

    def live(self) -> list[Lease]:
        return [LEASES.load(row) for row in _live.rows(self._connection)]

    def live_of_job(self, job_id: str) -> Lease | None:
        row = _live_of_job.first(self._connection, {"job": job_id})
        return None if row is None else LEASES.load(row)

    def of_job(self, job_id: str) -> list[Lease]:
        return LEASES.where(self._connection, _leases.job_id == job_id)

    def on_account(self, account_id: str, limit: int) -> list[Lease]:
        newest = LEASES.select.where(_leases.account_id == account_id).order_by(_leases.id.desc()).limit(limit)
        return [LEASES.load(row) for row in self._connection.execute(newest)]

    def uncollected(self) -> list[Lease]:
        return [LEASES.load(row) for row in _uncollected.rows(self._connection)]

    def live_counts(self) -> tuple[dict[str, int], dict[str, int]]:
        by_member: dict[str, int] = {}
        by_account: dict[str, int] = {}
        for member, account, count in _counts.rows(self._connection):
            by_member[member] = by_member.get(member, 0) + count
            by_account[account] = by_account.get(account, 0) + count
        return by_member, by_account

    def set_external_id(self, lease_id: str, external_id: str) -> None:
        _set_external_id.run(self._connection, {"lease": lease_id, "external": external_id})

    def set_collected(self, lease_id: str, at: float) -> None:
        _set_collected.run(self._connection, {"lease": lease_id, "at": at})
