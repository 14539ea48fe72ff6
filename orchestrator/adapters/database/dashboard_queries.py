"""The read side of the dashboard: what pages and live streams read besides `queries`. An index answers each query."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, bindparam, func, or_, select

from orchestrator.adapters.database import tables
from orchestrator.adapters.database.compiled_sql import Statement
from orchestrator.adapters.database.leases import IS_LIVE
from orchestrator.adapters.database.tables import MAX_VALUE
from orchestrator.domain.lifecycle import EndReason, JobState

Row = dict[str, Any]
Point = tuple[int, float, float, int]
"""`(step, value, at, fence)` of one metric. `at` is the time in epoch seconds at which its report arrived."""

FAILURES = frozenset({EndReason.FAILED, EndReason.LOST, EndReason.LAUNCH_FAILED, EndReason.UNFIT})
MAX_SESSIONS_OF_A_DAY = 5_000
MAX_READINGS = 20_000
"""Hardware readings of a job that its chart shows: those of 83 hours."""
_jobs, _leases, _metrics, _events = tables.jobs, tables.leases, tables.metrics, tables.events
_readings = tables.readings

_of_job = _metrics.c.job_id == bindparam("job")
_named = _metrics.c.name == bindparam("name")
_points = select(_metrics.c.step, _metrics.c.value, _metrics.c.at, _metrics.c.fence).where(_of_job, _named)
_curve = Statement(_points.order_by(_metrics.c.step))
_curve_from = Statement(
    _points.where(_metrics.c.step >= bindparam("step"), _metrics.c.fence >= bindparam("fence"))
    .order_by(_metrics.c.step)
    .limit(bindparam("most"))
)
_newest_value = Statement(
    select(_metrics.c.value, _metrics.c.step, _metrics.c.fence)
    .where(_of_job, _named)
    .order_by(_metrics.c.step.desc())
    .limit(1)
)
_is_finite = _metrics.c.value.between(-MAX_VALUE, MAX_VALUE)
_bucket = _metrics.c.step.op("/")(bindparam("width")).label("bucket")
_means = Statement(
    select(_bucket, func.avg(_metrics.c.value)).where(_of_job, _named, _is_finite).group_by("bucket").order_by("bucket")
)
_lowest = Statement(select(func.min(_metrics.c.value)).where(_of_job, _named, _is_finite))
_memory = func.coalesce(_readings.c.reading["gpu_memory_bytes"].as_float(), _readings.c.reading["rss_bytes"].as_float())
_readings_of = (
    _readings.c.lease_id.in_(select(_leases.c.id).where(_leases.c.job_id == bindparam("job"))),
    _memory.is_not(None),
)
_memory_bucket = _readings.c.step.op("/")(bindparam("width")).label("bucket")
_memory_means = Statement(
    select(_memory_bucket, func.avg(_memory)).where(*_readings_of).group_by("bucket").order_by("bucket")
)
_memory_last = Statement(select(func.max(_readings.c.step)).where(*_readings_of))
_changing = ("updated_at", "state", "head", "cancel_requested_at", "pause_requested_at", "priority")
_newest_event = select(func.max(_events.c.id)).where(_events.c.job_id == _jobs.c.id).scalar_subquery()
_pulse = select(_jobs.c.id, *(_jobs.c[n] for n in _changing), _newest_event).where(
    _jobs.c.id.in_(bindparam("jobs", expanding=True)), _jobs.c.deleted_at.is_(None)
)
_changing_there = ("fence", "last_seq", "state", "phase", "last_seen_at", "step")
_live_of = _leases.c.job_id.in_(bindparam("jobs", expanding=True))
_pulse_there = select(_leases.c.job_id, *(_leases.c[n] for n in _changing_there)).where(IS_LIVE, _live_of)


@dataclass(frozen=True, kw_only=True)
class Day:
    """The sessions of the last 24 hours. `hours` counts each machine's time once."""

    hours: float
    handoffs: int
    lost: int
    steps: int


class DashboardQueries:
    """The queries of the dashboard pages. Rows are dicts, times are epoch seconds."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")

    def _all(self, statement: Any) -> list[Row]:
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(statement).mappings()]

    # one job

    def pulses(self, job_ids: Sequence[str]) -> dict[str, tuple[Any, ...] | None]:
        """A value for each job that changes when something on its page changes. None for a deleted job."""
        with self._engine.connect() as connection:
            jobs = {row[0]: tuple(row) for row in connection.execute(_pulse, {"jobs": job_ids})}
            live = {row[0]: tuple(row) for row in connection.execute(_pulse_there, {"jobs": job_ids})}
        return {j: (*jobs[j], *live.get(j, ())) if j in jobs else None for j in job_ids}

    def curve(self, job_id: str, name: str) -> list[Point]:
        """The finite values of a metric, by step."""
        with self._engine.connect() as connection:
            return [
                (s, v, a, f) for s, v, a, f in _curve.rows(connection, {"job": job_id, "name": name}) if _is_number(v)
            ]

    def curves_from(
        self, job_id: str, names: Sequence[str], *, step: int, fence: int, most: int
    ) -> dict[str, list[Point]]:
        """Values from this step on that this session or a later one reported, at most `most` for each metric."""
        with self._engine.connect() as connection:
            asked = {"job": job_id, "step": step, "fence": fence, "most": most}
            found = {n: _curve_from.rows(connection, asked | {"name": n}) for n in names}
        return {n: [(s, v, a, f) for s, v, a, f in rows if _is_number(v)] for n, rows in found.items() if rows}

    def memory(self, job_id: str, *, step: int = 0, fence: int = 0) -> list[Point]:
        """GiB in use by step, from the hardware readings: of the GPUs, or of the worker on a machine without one."""
        columns = (_readings.c.step, _readings.c.reading, _readings.c.at, _leases.c.fence)
        asked = select(*columns).join(_leases, _leases.c.id == _readings.c.lease_id)
        asked = asked.where(_leases.c.job_id == job_id, _leases.c.fence >= fence, _readings.c.step >= step)
        rows = self._all(asked.order_by(_readings.c.step, _readings.c.at).limit(MAX_READINGS))
        used = [(row, row["reading"].get("gpu_memory_bytes") or row["reading"].get("rss_bytes")) for row in rows]
        return [(row["step"], size / 2**30, row["at"], row["fence"]) for row, size in used if size is not None]

    def position(self, job_id: str, name: str) -> tuple[int, int] | None:
        """The fence and the step of a metric's value at its last step. None without a value."""
        with self._engine.connect() as connection:
            found = _newest_value.first(connection, {"job": job_id, "name": name})
        return (found[2], found[1]) if found else None

    def newest(self, job_id: str, name: str) -> float | None:
        """A metric's value at its last step."""
        with self._engine.connect() as connection:
            found = _newest_value.first(connection, {"job": job_id, "name": name})
        return found[0] if found and _is_number(found[0]) else None

    # several jobs

    def specs(self, job_ids: Sequence[str]) -> dict[str, Row]:
        """The job files of these jobs, by id."""
        rows = self._all(select(_jobs.c.id, _jobs.c.spec).where(_jobs.c.id.in_(job_ids)))
        return {row["id"]: row["spec"] for row in rows}

    def means(self, job_id: str, name: str, width: int) -> list[tuple[int, float]]:
        """The means of a metric over ranges of `width` steps: `(range, mean)`, the first range beginning at step 0."""
        with self._engine.connect() as connection:
            found = _means.rows(connection, {"job": job_id, "name": name, "width": width})
        return [(bucket, mean) for bucket, mean in found]

    def lowest(self, job_id: str, name: str) -> float | None:
        """A metric's lowest finite value."""
        with self._engine.connect() as connection:
            found = _lowest.first(connection, {"job": job_id, "name": name})
        return found[0] if found else None

    def memory_means(self, job_id: str, width: int) -> list[tuple[int, float]]:
        """As `means`, of the bytes in use: of the GPU, or without one of the worker's process."""
        with self._engine.connect() as connection:
            found = _memory_means.rows(connection, {"job": job_id, "width": width})
        return [(bucket, mean) for bucket, mean in found]

    def memory_position(self, job_id: str) -> int | None:
        """The last step at which the memory in use was read. None without a reading."""
        with self._engine.connect() as connection:
            found = _memory_last.first(connection, {"job": job_id})
        return found[0] if found else None

    def values_at(self, job_id: str, name: str, steps: Sequence[int]) -> dict[int, float]:
        """A metric's values at some steps."""
        at = _metrics.c.step.in_(steps)
        rows = self._all(
            select(_metrics.c.step, _metrics.c.value).where(_metrics.c.job_id == job_id, _metrics.c.name == name, at)
        )
        return {row["step"]: row["value"] for row in rows if _is_number(row["value"])}

    def newest_events(self, job_id: str, limit: int) -> list[Row]:
        """The newest events of a job, newest first."""
        return self._all(select(_events).where(_events.c.job_id == job_id).order_by(_events.c.id.desc()).limit(limit))

    # all jobs

    def queue(self, member_id: str | None, limit: int) -> list[Row]:
        """Ids, names and owners of queued jobs, oldest first. With a member, only their jobs."""
        columns = (
            _jobs.c.id,
            _jobs.c.name,
            _jobs.c.priority,
            _jobs.c.created_at,
            tables.members.c.name.label("member"),
        )
        asked = select(*columns).join(tables.members, tables.members.c.id == _jobs.c.member_id)
        asked = asked.where(_jobs.c.state == JobState.QUEUED.value)
        if member_id is not None:
            asked = asked.where(_jobs.c.member_id == member_id)
        return self._all(asked.order_by(_jobs.c.id).limit(limit))

    def running(self, member_id: str | None, limit: int) -> list[Row]:
        """Live sessions with their job's name, progress and newest checkpoint. With a member, only their sessions."""
        columns = ("id", "job_id", "account_id", "provider", "state", "phase", "step", "created_at", "started_at")
        columns += ("budget_s", "last_seen_at", "expires_at", "hardware", "seconds_per_step")
        mine = [_leases.c.member_id == member_id] if member_id is not None else []
        # Limited in a subquery, because the planner could otherwise start with all jobs.
        some = select(*(_leases.c[n] for n in columns)).where(IS_LIVE, *mine).order_by(_leases.c.id.desc()).limit(limit)
        live = some.subquery()
        head = (tables.checkpoints.c.job_id == _jobs.c.id) & (tables.checkpoints.c.sha256 == _jobs.c.head)
        asked = (
            select(
                *(c for c in live.c if c.name != "account_id"),
                _jobs.c.name.label("job_name"),
                _jobs.c.total_steps,
                _jobs.c.head_step,
                tables.members.c.name.label("member"),
                tables.accounts.c.name.label("account"),
                tables.checkpoints.c.created_at.label("safe_at"),
            )
            .select_from(live)
            .join(_jobs, _jobs.c.id == live.c.job_id)
            .join(tables.members, tables.members.c.id == _jobs.c.member_id)
            .outerjoin(tables.accounts, tables.accounts.c.id == live.c.account_id)
            .outerjoin(tables.checkpoints, head)
        )
        return self._all(asked.order_by(live.c.id.desc()))

    def day(self, member_id: str | None, *, first_id: str, now: float) -> Day:
        """Totals of the sessions with ids from `first_id` on. With a member, only their sessions."""
        columns = (_leases.c.started_at, _leases.c.ended_at, _leases.c.end_reason, _leases.c.step, _leases.c.first_step)
        ran = or_(_leases.c.started_at.is_not(None), _leases.c.end_reason == EndReason.LOST.value)
        asked = select(*columns).where(_leases.c.id >= first_id, ran)
        if member_id is not None:
            asked = asked.where(_leases.c.member_id == member_id)
        rows = self._all(asked.order_by(_leases.c.id.desc()).limit(MAX_SESSIONS_OF_A_DAY))
        return Day(
            hours=sum(max(0.0, (r["ended_at"] or now) - r["started_at"]) for r in rows if r["started_at"]) / 3600,
            handoffs=sum(r["end_reason"] == "handed_off" for r in rows),
            lost=sum(r["end_reason"] == EndReason.LOST for r in rows),
            steps=sum(max(0, r["step"] - r["first_step"]) for r in rows),
        )

    def failures(self, account_ids: Sequence[str], *, first_id: str) -> dict[str, tuple[int, str]]:
        """How many of an account's newest sessions have failed in a row, and why the last one did.

        Accounts with none are left out. Sessions with ids from `first_id` on count.
        """
        columns = (_leases.c.account_id, _leases.c.end_reason, _leases.c.detail)
        ended = (_leases.c.id >= first_id, _leases.c.ended_at.is_not(None), _leases.c.account_id.in_(account_ids))
        asked = select(*columns).where(*ended).order_by(_leases.c.id.desc()).limit(MAX_SESSIONS_OF_A_DAY)
        found, over = dict[str, tuple[int, str]](), set[str]()
        for row in self._all(asked):
            account = row["account_id"]
            if row["end_reason"] not in FAILURES:
                over.add(account)
            elif account not in over:
                count, why = found.get(account, (0, row["detail"]))
                found[account] = (count + 1, why)
        return found

    def count(self, state: JobState, most: int) -> int:
        """Jobs in a state, counted no further than `most`."""
        there = (_jobs.c.state == state.value, _jobs.c.deleted_at.is_(None))
        some = select(_jobs.c.id).where(*there).limit(most).subquery()
        return self._all(select(func.count().label("n")).select_from(some))[0]["n"]


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
