"""The repository of runs at experiment trackers and of members' logins there."""

from __future__ import annotations

from sqlalchemy import Connection, delete, func, or_, select, update

from orchestrator.adapters.database import tables
from orchestrator.adapters.database.compiled_sql import Upsert
from orchestrator.adapters.database.mapper import Mapper
from orchestrator.adapters.database.repository import SqlRepository
from orchestrator.adapters.database.tracking_tables import tracked_runs, tracker_logins
from orchestrator.domain.lifecycle import JobState
from orchestrator.domain.tracking import CurveRow, SealedLogin, TrackedRun

RUNS = Mapper(TrackedRun, tracked_runs, frozen=("member_id", "created_at"))
LOGINS = Mapper(SealedLogin, tracker_logins)
_runs, _logins, _metrics, _jobs = tracked_runs.c, tracker_logins.c, tables.metrics.c, tables.jobs.c
_put_login = Upsert(tracker_logins, ("sealed",))
_FINAL = [state.value for state in JobState if state.is_final]
_IS_UNFINISHED = (_runs.told == "") & _runs.gave_up_at.is_(None)
_MAX_NAMES = 1_000


class SqlTrackingRepository(SqlRepository):
    """Implements `ports.repository.tracking.TrackingRepository`."""

    def add(self, run: TrackedRun) -> None:
        RUNS.add(self._connection, run)

    def save(self, run: TrackedRun) -> None:
        RUNS.save(self._connection, run)

    def get_for_update(self, job_id: str, tracker: str) -> TrackedRun | None:
        return RUNS.get(self._connection, lock=True, job_id=job_id, tracker=tracker)

    def of_job(self, job_id: str) -> list[TrackedRun]:
        return RUNS.where(self._connection, _runs.job_id == job_id, order=_runs.tracker)

    def unfinished(self) -> list[TrackedRun]:
        return RUNS.where(self._connection, _IS_UNFINISHED, order=_runs.job_id)

    def due(self, now: float, limit: int) -> list[TrackedRun]:
        has_news = or_(_jobs.head_step > _runs.written_step, _jobs.state.in_(_FINAL))
        query = RUNS.select.join(tables.jobs, _jobs.id == _runs.job_id).where(
            _IS_UNFINISHED, _runs.not_before <= now, _jobs.head.is_not(None) | _jobs.state.in_(_FINAL), has_news
        )
        rows = self._connection.execute(query.order_by(_runs.not_before, _runs.job_id).limit(limit))
        return [RUNS.load(tuple(row)) for row in rows]

    def reopen(self, job_id: str) -> None:
        again = {"told": "", "gave_up_at": None, "attempts": 0, "not_before": 0.0}
        self._connection.execute(update(tracked_runs).where(_runs.job_id == job_id).values(again))

    def newest_step(self, job_id: str) -> int:
        steps = [
            self._connection.scalar(select(func.max(_metrics.step)).where(*self._named(job_id, name)))
            for name in self._names(job_id)
        ]
        return max((step for step in steps if step is not None), default=-1)

    def curve(self, job_id: str, after: int, limit: int) -> list[CurveRow]:
        """One look into the key per name, because a job may have millions of other rows."""
        found: list[CurveRow] = []
        for name in self._names(job_id):
            query = select(_metrics.step, _metrics.value, _metrics.fence, _metrics.at).where(
                *self._named(job_id, name), _metrics.step > after
            )
            rows = self._connection.execute(query.order_by(_metrics.step).limit(limit))
            found += [CurveRow(step=r.step, name=name, value=r.value, fence=r.fence, at=r.at) for r in rows]
        last = sorted({row.step for row in found})[:limit]
        return [row for row in found if last and row.step <= last[-1]]

    def _names(self, job_id: str) -> list[str]:
        names, last = list[str](), ""
        while len(names) < _MAX_NAMES:
            following = select(func.min(_metrics.name)).where(_metrics.job_id == job_id, _metrics.name > last)
            last = self._connection.scalar(following) or ""
            if not last:
                break
            names.append(last)
        return names

    def _named(self, job_id: str, name: str):  # noqa: ANN202  two conditions
        return _metrics.job_id == job_id, _metrics.name == name

    def login(self, member_id: str, tracker: str) -> SealedLogin | None:
        return LOGINS.get(self._connection, member_id=member_id, tracker=tracker)

    def logins(self, member_id: str) -> list[SealedLogin]:
        return LOGINS.where(self._connection, _logins.member_id == member_id, order=_logins.tracker)

    def put_login(self, login: SealedLogin) -> None:
        _put_login.run(self._connection, LOGINS.dump(login))
        theirs = (_runs.member_id == login.member_id, _runs.tracker == login.tracker, _runs.told == "")
        again = {"gave_up_at": None, "attempts": 0, "not_before": 0.0}
        self._connection.execute(update(tracked_runs).where(*theirs).values(again))

    def delete_login(self, member_id: str, tracker: str) -> None:
        theirs = (_logins.member_id == member_id, _logins.tracker == tracker)
        self._connection.execute(delete(tracker_logins).where(*theirs))


def remove_logins(connection: Connection, member_id: str, now: float | None) -> None:
    """Delete the logins of a member who is removed, and end their runs as they are."""
    ended = {"gave_up_at": now, "reason": "Its owner was removed from this server."}
    connection.execute(update(tracked_runs).where(_runs.member_id == member_id, _IS_UNFINISHED).values(ended))
    connection.execute(delete(tracker_logins).where(_logins.member_id == member_id))
