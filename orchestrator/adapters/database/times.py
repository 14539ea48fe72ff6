"""The repository of all times that are compared with the present."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Table, and_, or_, select, update

from orchestrator.adapters.database import judge_tables, push_tables, share_tables, tables, tracking_tables
from orchestrator.adapters.database.jobs import IS_UNENDED
from orchestrator.adapters.database.leases import IS_LIVE
from orchestrator.adapters.database.repository import SqlRepository
from orchestrator.domain.lifecycle import CheckpointState

_leases, _jobs = tables.leases.c, tables.jobs.c
_checkpoints = tables.checkpoints.c
# A pause is compared with the time of the last checkpoint, also of a committed one.
_is_of_a_live_session = or_(
    _checkpoints.state == CheckpointState.OFFERED.value,
    _checkpoints.lease_id.in_(select(_leases.id).where(IS_LIVE)),
)
_LEASE_TIMES = ("created_at", "expires_at", "deadline_at", "started_at", "ended_at", "last_seen_at")

_COMPARED: tuple[tuple[Table, tuple[str, ...], Any], ...] = (
    (tables.leases, _LEASE_TIMES, or_(IS_LIVE, _leases.collected_at.is_(None))),
    (tables.jobs, ("not_before",), _jobs.not_before > 0),
    (tables.jobs, ("cancel_requested_at",), and_(IS_UNENDED, _jobs.cancel_requested_at.is_not(None))),
    (tables.jobs, ("pause_requested_at",), and_(IS_UNENDED, _jobs.pause_requested_at.is_not(None))),
    (tables.accounts, ("not_before",), tables.accounts.c.not_before > 0),
    (tables.checkpoints, ("created_at",), _is_of_a_live_session),
    (tables.claims, ("created_at", "expires_at", "used_at"), None),
    (tables.tokens, ("expires_at",), tables.tokens.c.expires_at.is_not(None)),
    (tables.remembered, ("at",), None),
    (judge_tables.judgements, ("not_before",), judge_tables.judgements.c.not_before > 0),
    (push_tables.pushes, ("not_before",), push_tables.pushes.c.not_before > 0),
    (tracking_tables.tracked_runs, ("not_before",), tracking_tables.tracked_runs.c.not_before > 0),
    (share_tables.shares, ("expires_at",), share_tables.shares.c.expires_at.is_not(None)),
    (tables.deliveries, ("next_at", "created_at", "sent_at"), None),
)


class SqlTimeRepository(SqlRepository):
    """Implements `ports.repository.TimeRepository`."""

    def shift(self, seconds: float) -> None:
        for table, columns, which in _COMPARED:
            moved = update(table).values({name: table.c[name] + seconds for name in columns})
            self._connection.execute(moved if which is None else moved.where(which))
