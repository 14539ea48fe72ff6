"""The queries of pages, charts and clients: plain selects on read connections, never on the writer's.

Every page costs a fixed number of statements. An index answers each of them, for any number of jobs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Unpack

from sqlalchemy import Engine, Select, and_, bindparam, case, exists, func, select

from orchestrator.adapters.database import job_list, tables
from orchestrator.adapters.database.job_list import Order, Wanted
from orchestrator.adapters.database.leases import IS_LIVE
from orchestrator.domain.accounts import Actor, Role
from orchestrator.domain.jobs import Job
from orchestrator.domain.lifecycle import JobState
from orchestrator.domain.storage import ADAPTER

Row = dict[str, Any]

EXCERPT = 500
"""Characters of a job's or a session's message in a list. The whole text is on the single job or session."""
SAMPLES_TEXT = 4_000_000
"""Characters of the samples of one answer."""

_jobs, _leases, _checkpoints, _metrics = tables.jobs, tables.leases, tables.checkpoints, tables.metrics
_events, _samples, _readings, _tokens = tables.events, tables.samples, tables.readings, tables.tokens
_members = tables.members


def _shortened(column: Any) -> Any:
    """The start of a text column, under the same name. Lists show no more of it."""
    longer = func.substr(column, 1, EXCERPT - 1).concat("…")
    return case((func.length(column) > EXCERPT, longer), else_=column).label(column.name)


_tags = tables.job_tags
_tags_of = select(func.aggregate_strings(_tags.c.tag, " ")).where(_tags.c.job_id == _jobs.c.id).scalar_subquery()
_note_of = select(tables.job_notes.c.note).where(tables.job_notes.c.job_id == _jobs.c.id).scalar_subquery()
_hidden = ("spec", "adapter_key", "adapter_store", "deleted_at")
_is_there = _jobs.c.deleted_at.is_(None)
_head = and_(_checkpoints.c.job_id == _jobs.c.id, _checkpoints.c.sha256 == _jobs.c.head)
_job = (
    select(
        *(c for c in _jobs.c if c.name not in (*_hidden, "message")),
        tables.members.c.name.label("member"),
        _checkpoints.c.size.label("head_size"),
        _checkpoints.c.created_at.label("head_at"),
        job_list.value_of("loss", newest=False).label("loss_first"),
        job_list.value_of("loss", newest=True).label("loss_last"),
        _tags_of.label("tags"),
        func.coalesce(_note_of, "").label("note"),
    )
    .join(tables.members, tables.members.c.id == _jobs.c.member_id)
    .outerjoin(_checkpoints, _head)
    .where(_is_there)
)
_job_by_id = _job.add_columns(_jobs.c.message, _jobs.c.spec, _jobs.c.adapter_key, _jobs.c.adapter_store).where(
    _jobs.c.id == bindparam("id")
)
_jobs_by_id = _job.add_columns(_shortened(_jobs.c.message)).where(_jobs.c.id.in_(bindparam("ids", expanding=True)))
_owner = (
    select(_jobs.c.member_id, _members.c.name)
    .join(_members, _members.c.id == _jobs.c.member_id)
    .where(_jobs.c.id == bindparam("id"), _is_there)
)
_any_session = (
    select(
        *(c for c in _leases.c if c.name not in ("token_hash", "nonce", "detail")),
        tables.accounts.c.name.label("account"),
        _jobs.c.member_id,
    )
    .select_from(
        _leases.join(_jobs, _jobs.c.id == _leases.c.job_id).outerjoin(
            tables.accounts, tables.accounts.c.id == _leases.c.account_id
        )
    )
    .where(_is_there)
)
_session_by_id = _any_session.add_columns(_leases.c.detail).where(_leases.c.id == bindparam("id"))
_session = _any_session.add_columns(_shortened(_leases.c.detail))
_of_jobs = _leases.c.job_id.in_(bindparam("jobs", expanding=True))
_sessions_of = _session.where(_of_jobs).order_by(_leases.c.job_id, _leases.c.fence)
_runs_of = (
    select(
        *(c for c in _leases.c if c.name not in ("token_hash", "nonce", "hardware", "ledger", "detail")),
        _shortened(_leases.c.detail),
        tables.accounts.c.name.label("account"),
    )
    .outerjoin(tables.accounts, tables.accounts.c.id == _leases.c.account_id)
    .where(_of_jobs)
    .order_by(_leases.c.job_id, _leases.c.fence)
)
_token = (
    select(
        _tokens.c.member_id,
        _tokens.c.role,
        _tokens.c.expires_at,
        tables.members.c.name,
        exists(select(tables.team.c.id).where(tables.team.c.everyone_sees_jobs.is_(True))).label("team_sees_jobs"),
    )
    .join(tables.members, tables.members.c.id == _tokens.c.member_id)
    .where(_tokens.c.hash == bindparam("hash"))
)
_checkpoint = select(_checkpoints).where(_checkpoints.c.job_id == bindparam("job"))


@dataclass(frozen=True, kw_only=True)
class Page:
    """Rows of one page. `next` is the cursor of the next page. A page may be short and still have a next one."""

    items: list[Row]
    next: str | None


class Queries:
    """The queries of the API. Rows are dicts with the API's field names, times are epoch seconds.

    For filters without an index, a page reads at most `scanned_per_page` rows. The next page starts at its cursor.
    """

    def __init__(self, engine: Engine, *, scanned_per_page: int = 10_000) -> None:
        self._scanned_per_page = scanned_per_page
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")

    def _all(self, statement: Select[*tuple[Any, ...]], parameters: Mapping[str, Any] | None = None) -> list[Row]:
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(statement, parameters or {}).mappings()]

    def _one(self, statement: Select[*tuple[Any, ...]], parameters: Mapping[str, Any] | None = None) -> Row | None:
        with self._engine.connect() as connection:
            row = connection.execute(statement, parameters or {}).mappings().first()
            return None if row is None else dict(row)

    # jobs

    def jobs(
        self, *, now: float, limit: int, before: str | None, order: Order = Order.SUBMITTED, **wanted: Unpack[Wanted]
    ) -> Page:
        """A page of the list of jobs. `before` is `next` of the page before, in the same order."""
        ids, cursor = job_list.page(
            self._all, order, before, limit=limit, scanned=self._scanned_per_page, wanted=wanted
        )
        rows = {row["id"]: row for row in self._all(_jobs_by_id, {"ids": ids})} if ids else {}
        return Page(items=self._with_sessions([rows[i] for i in ids if i in rows], now), next=cursor)

    def job(self, job_id: str, now: float) -> Row | None:
        """One job with its spec."""
        rows = self._all(_job_by_id, {"id": job_id})
        return self._with_sessions(rows, now)[0] if rows else None

    @staticmethod
    def fresh(job: Job, member: str, tags: Sequence[str], now: float) -> Row:
        """A job that has just been queued, as `job` would show it."""
        nothing = dict.fromkeys(("head_size", "head_at", "loss_first", "loss_last"))
        return _as_job({**vars(job), **nothing, "member": member, "tags": " ".join(tags), "note": ""}, [], now)

    def owner(self, job_id: str) -> tuple[str, str] | None:
        """The id and the name of the member who owns a job."""
        row = self._one(_owner, {"id": job_id})
        return (row["member_id"], row["name"]) if row else None

    def clones(self, job_id: str, limit: int) -> list[Row]:
        """The newest jobs that were cloned from this one."""
        columns = (_jobs.c.id, _jobs.c.name, _jobs.c.first_step, _jobs.c.member_id, _jobs.c.state)
        return self._all(
            select(*columns).where(_is_there, _jobs.c.cloned_from == job_id).order_by(_jobs.c.id.desc()).limit(limit)
        )

    def _with_sessions(self, rows: list[Row], now: float) -> list[Row]:
        sessions: dict[str, list[Row]] = {row["id"]: [] for row in rows}
        for session in self._all(_runs_of, {"jobs": list(sessions)}) if rows else []:
            sessions[session["job_id"]].append(session)
        return [_as_job(row, sessions[row["id"]], now) for row in rows]

    # sessions

    def sessions(self, *, job_id: str) -> list[Row]:
        """All sessions of a job, oldest first."""
        return [_as_session(row) for row in self._all(_sessions_of, {"jobs": [job_id]})]

    def live_sessions(self, member_id: str | None) -> list[Row]:
        """Sessions that run now. With a member, only their sessions."""
        mine = [_jobs.c.member_id == member_id] if member_id else []
        return [_as_session(row) for row in self._all(_session.where(IS_LIVE, *mine).order_by(_leases.c.id.desc()))]

    def recent_sessions(self, member_id: str | None, *, limit: int, before: str | None) -> Page:
        """Sessions, newest first. With a member, only their sessions."""
        query = _session.where(*([_leases.c.id < before] if before else []))
        if member_id:
            query = query.where(_jobs.c.member_id == member_id)
        rows = self._all(query.order_by(_leases.c.id.desc()).limit(limit + 1))
        more = rows[limit - 1]["id"] if len(rows) > limit else None
        return Page(items=[_as_session(row) for row in rows[:limit]], next=more)

    def session(self, lease_id: str) -> Row | None:
        """One session. `member_id` is its job's owner. `account_id` and `external_id` tell where it ran."""
        row = self._one(_session_by_id, {"id": lease_id})
        return None if row is None else _as_session(row)

    def readings(self, lease_id: str, limit: int) -> list[Row]:
        """The newest readings of a session, oldest first."""
        newest = select(_readings.c.at, _readings.c.step, _readings.c.reading).where(_readings.c.lease_id == lease_id)
        return self._all(newest.order_by(_readings.c.at.desc()).limit(limit))[::-1]

    # the results of a job

    def checkpoints(self, job_id: str) -> list[Row]:
        """All checkpoints of a job by step, without their manifests."""
        columns = (c for c in _checkpoints.c if c.name != "manifest")
        of_job = select(*columns).where(_checkpoints.c.job_id == job_id)
        return self._all(of_job.order_by(_checkpoints.c.step, _checkpoints.c.created_at))

    def checkpoint(self, job_id: str, sha256: str) -> Row | None:
        """One checkpoint with its manifest."""
        return self._one(
            _checkpoint.where(_checkpoints.c.sha256 == bindparam("sha256")), {"job": job_id, "sha256": sha256}
        )

    def metrics(
        self, job_id: str, *, name: str | None, from_step: int, limit: int
    ) -> list[tuple[str, int, float | None]]:
        """`(name, step, value)` by name and step. The value is None if JSON cannot represent it."""
        columns = (_metrics.c.name, _metrics.c.step, _metrics.c.value)
        query = select(*columns).where(_metrics.c.job_id == job_id, _metrics.c.step >= from_step)
        if name is not None:
            query = query.where(_metrics.c.name == name)
        query = query.order_by(_metrics.c.name, _metrics.c.step).limit(limit)
        with self._engine.connect() as connection:
            return [(n, s, v if math.isfinite(v) else None) for n, s, v in connection.execute(query)]

    def samples(self, job_id: str, limit: int) -> list[Row]:
        """Sampled model output, by step, up to `SAMPLES_TEXT` characters."""
        columns = (_samples.c.step, _samples.c.prompt, _samples.c.text, _samples.c.at)
        by_prompt = (_samples.c.step, _samples.c.prompt_sha256)
        characters = func.length(_samples.c.prompt) + func.length(_samples.c.text)
        so_far = func.sum(characters).over(order_by=by_prompt, rows=(None, 0)).label("so_far")
        query = select(*columns, by_prompt[1], so_far).where(_samples.c.job_id == job_id)
        numbered = query.order_by(*by_prompt).limit(limit).subquery()
        shown = select(*(numbered.c[column.name] for column in columns)).where(numbered.c.so_far <= SAMPLES_TEXT)
        in_order = shown.order_by(numbered.c.step, numbered.c.prompt_sha256)
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(in_order).mappings()]

    # data files

    def datasets(self, *, member_id: str | None, limit: int, before: str | None, rows_only: bool = False) -> Page:
        """Data files with their uploaders, newest first. With a member, only their uploads.

        With `rows_only`, without adapters that jobs continue from.
        """
        up, data = tables.uploads.c, tables.datasets.c
        query = (
            select(
                *tables.uploads.c,
                data.size,
                data.rows,
                data.row_format,
                data.file_format,
                data.parent,
                _members.c.name.label("member"),
            )
            .join(tables.datasets, data.sha256 == up.sha256)
            .join(_members, _members.c.id == up.member_id)
            .where(*([up.id < before] if before else []), *([up.member_id == member_id] if member_id else []))
        )
        if rows_only:
            query = query.where(data.row_format != ADAPTER)
        rows = self._all(query.order_by(up.id.desc()).limit(limit + 1))
        return Page(items=rows[:limit], next=rows[limit - 1]["id"] if len(rows) > limit else None)

    # events

    def events(self, *, after: int, job_id: str | None, member_id: str | None, limit: int) -> list[Row]:
        """Events with a larger id, oldest first: those of one job, of one member's jobs, or all."""
        columns = (c for c in _events.c if c.name != "reason")
        query = select(*columns, _shortened(_events.c.reason)).where(_events.c.id > after)
        if job_id is not None:
            query = query.where(_events.c.job_id == job_id)
        elif member_id is not None:
            query = query.where(exists().where(_jobs.c.id == _events.c.job_id, _jobs.c.member_id == member_id))
        return self._all(query.order_by(_events.c.id).limit(limit))

    def last_event(self) -> int:
        """The newest event's id, 0 if there is none."""
        row = self._one(select(func.max(_events.c.id).label("id")))
        return row["id"] or 0 if row else 0

    # members and numbers

    def token(self, token_hash: str) -> tuple[Actor, float | None] | None:
        """Who the token with this hash acts for, and when it expires in epoch seconds (None for never)."""
        row = self._one(_token, {"hash": token_hash})
        if row is None:
            return None
        seen = bool(row["team_sees_jobs"])
        actor = Actor(member_id=row["member_id"], name=row["name"], role=Role(row["role"]), team_sees_jobs=seen)
        return actor, row["expires_at"]

    def member_id(self, name_or_id: str) -> str | None:
        """The id of a member by name or id."""
        known = tables.members.c
        row = self._one(select(known.id).where((known.id == name_or_id) | (known.name == name_or_id)))
        return row["id"] if row else None

    def counts(self) -> dict[str, list[tuple[str, int]]]:
        """Jobs by state, live sessions by provider, and the steps that these sessions have done so far by provider."""
        jobs = select(_jobs.c.state, func.count()).where(_is_there).group_by(_jobs.c.state)
        live = select(_leases.c.provider, func.count()).where(IS_LIVE).group_by(_leases.c.provider)
        done = func.coalesce(func.sum(_leases.c.step - _leases.c.first_step), 0)
        steps = select(_leases.c.provider, done).where(IS_LIVE).group_by(_leases.c.provider)
        with self._engine.connect() as connection:
            queries: dict[str, Select[Any, Any]] = {"jobs": jobs, "sessions": live, "steps": steps}
            return {
                name: [(str(key), int(n)) for key, n in map(tuple, connection.execute(s))]
                for name, s in queries.items()
            }


def _as_job(row: Row, sessions: list[Row], now: float) -> Row:
    live = next((s for s in reversed(sessions) if s["ended_at"] is None), None)
    runs = JobState(row["state"]).holds_lease and live is not None
    step = max(row["head_step"], live["step"]) if runs and live else row["head_step"]
    step_time = (live["seconds_per_step"] if live else None) or row["gpu_step_s"] or row["host_step_s"]
    begun = [s for s in sessions if s["started_at"] is not None]
    head = {"sha256": row["head"], "step": row["head_step"], "size": row["head_size"], "committed_at": row["head_at"]}
    loss = {"first": _finite(row["loss_first"]), "last": _finite(row["loss_last"])}
    adapter = {"sha256": row["adapter_sha256"], "zip_sha256": row["adapter_zip_sha256"], "bytes": row["adapter_bytes"]}
    return row | {
        "step": step,
        "head": head if row["head"] else None,
        "loss": loss if row["loss_first"] is not None else None,
        "seconds_per_step": step_time,
        "eta_seconds": (row["total_steps"] - step) * step_time if runs and step_time else None,
        "handoffs": max(0, len(begun) - 1),
        "steps_repeated": sum(max(0, a["step"] - b["first_step"]) for a, b in pairwise(begun)),
        "session": _brief(live, now) if live else None,
        "requests": {"cancel": row["cancel_requested_at"] is not None, "pause": row["pause_requested_at"] is not None},
        "adapter": adapter if row["adapter_sha256"] else None,
        "tags": sorted((row["tags"] or "").split()),
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _brief(live: Row, now: float) -> Row:
    names = ("id", "provider", "phase", "step", "last_seen_at", "state", "detail")
    account = live["account"] or live["account_id"]
    begin = live["started_at"] if live["one_way"] and live["started_at"] else live["created_at"]
    left = max(0.0, begin + live["budget_s"] - now)
    return {name: live[name] for name in names} | {"account": account, "seconds_left": left}


def _as_session(row: Row) -> Row:
    begin = row["started_at"] or row["created_at"]
    end = row["ended_at"] or row["last_seen_at"]
    return row | {
        "job": row["job_id"],
        "account": row["account"] or row["account_id"],
        "outcome": row["end_reason"],
        "last_step": row["step"],
        "seconds": max(0.0, end - begin) if end else 0.0,
    }
