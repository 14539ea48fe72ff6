"""What OpenAI's API reads besides `queries`: pages that begin after an entry, newest first. An index answers each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine, Select, func, select, tuple_

from orchestrator.adapters.database import tables
from orchestrator.adapters.database.tables import MAX_VALUE
from orchestrator.domain.lifecycle import CheckpointState, JobState

Row = dict[str, Any]
Rows = tuple[list[Row], bool]
"""Rows of a page, and whether there are more."""

LOSSES = ("loss", "eval_loss")
_jobs, _events, _metrics, _checkpoints = tables.jobs, tables.events, tables.metrics, tables.checkpoints
_uploads, _datasets = tables.uploads, tables.datasets
_ENDS = [f"job.{state}" for state in JobState if state.is_final]


class OpenAIQueries:
    """The queries of OpenAI's API. Times are epoch seconds."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")

    def _all(self, statement: Select[*tuple[Any, ...]]) -> list[Row]:
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(statement).mappings()]

    def _page(self, statement: Select[*tuple[Any, ...]], limit: int) -> Rows:
        rows = self._all(statement.limit(limit + 1))
        return rows[:limit], len(rows) > limit

    def uploads(self, member_id: str, *, after: str | None, limit: int, oldest_first: bool) -> Rows:
        """A member's data files. `after` is a sha256 of theirs."""
        mine = _uploads.c.member_id == member_id
        query = (
            select(_uploads.c.sha256, _uploads.c.name, _uploads.c.created_at, _datasets.c.size)
            .join(_datasets, _datasets.c.sha256 == _uploads.c.sha256)
            .where(mine)
        )
        if after is not None:
            last = select(_uploads.c.id).where(mine, _uploads.c.sha256 == after).scalar_subquery()
            query = query.where(_uploads.c.id > last if oldest_first else _uploads.c.id < last)
        return self._page(query.order_by(_uploads.c.id if oldest_first else _uploads.c.id.desc()), limit)

    def facts(self, job_ids: Sequence[str]) -> dict[str, Row]:
        """Of each job: its `spec`, the `tokens` of its steps, and when it has `ended` (None before)."""
        tokens = (
            select(func.sum(_metrics.c.value))
            .where(_metrics.c.job_id == _jobs.c.id, _metrics.c.name == "tokens")
            .scalar_subquery()
        )
        ended = (
            select(func.max(_events.c.at))
            .where(_events.c.job_id == _jobs.c.id, _events.c.kind.in_(_ENDS))
            .scalar_subquery()
        )
        columns = (_jobs.c.id, _jobs.c.spec, tokens.label("tokens"), ended.label("ended"))
        return {row["id"]: row for row in self._all(select(*columns).where(_jobs.c.id.in_(job_ids)))}

    def events(self, job_id: str, *, before: int | None, limit: int) -> Rows:
        """A job's events with a smaller id."""
        query = select(_events).where(_events.c.job_id == job_id)
        if before is not None:
            query = query.where(_events.c.id < before)
        return self._page(query.order_by(_events.c.id.desc()), limit)

    def checkpoints(self, job_id: str, *, after: str | None, limit: int) -> Rows:
        """A job's checkpoints that it could resume from. `after` is the sha256 of one, which may be pruned by now."""
        at = (_checkpoints.c.step, _checkpoints.c.created_at)
        of_job = _checkpoints.c.job_id == job_id
        query = select(_checkpoints.c.sha256, *at).where(of_job, _checkpoints.c.state == CheckpointState.COMMITTED)
        if after is not None:
            found = self._all(select(*at).where(of_job, _checkpoints.c.sha256 == after))
            if not found:
                return [], False
            query = query.where(tuple_(*at) < tuple_(*found[0].values()))
        return self._page(query.order_by(*(column.desc() for column in at)), limit)

    def losses(self, job_id: str, steps: Sequence[int]) -> dict[int, dict[str, float]]:
        """The finite losses of these steps, by step and name."""
        columns = (_metrics.c.name, _metrics.c.step, _metrics.c.value)
        named = _metrics.c.name.in_(LOSSES)
        found: dict[int, dict[str, float]] = {step: {} for step in steps}
        for row in self._all(select(*columns).where(_metrics.c.job_id == job_id, named, _metrics.c.step.in_(steps))):
            if math.isfinite(row["value"]) and abs(row["value"]) <= MAX_VALUE:
                found[row["step"]][row["name"]] = row["value"]
        return found
