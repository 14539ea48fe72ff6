"""Everything that the page of a job shows, looked up once for all who watch it, cut into the sections that change."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.lifecycle import JobState
from orchestrator.domain.model import StepTime
from orchestrator.domain.scheduling import Candidate
from orchestrator.entrypoints.dashboard import timeline
from orchestrator.entrypoints.dashboard.render import fragment
from orchestrator.entrypoints.http.dependencies import Server
from orchestrator.services import dispatch
from orchestrator.services.forecast import Forecast, forecast

SECTIONS = ("status", "sessions", "checkpoints", "samples", "machine", "events")
EVENTS_SHOWN = 40
SAMPLES_READ = 400
READINGS_SHOWN = 240
SURVEY_LIVES_S = 10.0
LAST_LINES_BYTES = 6_000
LAST_LINES = 50

Row = dict[str, Any]


class Machines:
    """What every account offers, asked no more often than every few seconds however many look."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._until, self._places = 0.0, list[Candidate]()

    def places(self) -> list[Candidate]:
        """All places, live sessions not deducted."""
        if time.monotonic() >= self._until:
            with self._server.ctx.uow() as tx:
                accounts = tx.accounts()
            self._places = dispatch.list_capacity(self._server.ctx, accounts)
            self._until = time.monotonic() + SURVEY_LIVES_S
        return self._places


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look at a job: `values` are what the sections' templates are rendered with."""

    row: Row
    values: Row

    def section(self, name: str) -> str:
        """One section as HTML."""
        return fragment(f"job_{name}.html", **self.values)

    def sections(self) -> dict[str, str]:
        """All sections by name."""
        return {name: self.section(name) for name in SECTIONS}


def look(server: Server, machines: Machines, job_id: str) -> Look | None:
    """The job as it is now, or None if it is gone."""
    now = server.ctx.clock.now()
    row = server.views.job(job_id, now)
    if row is None:
        return None
    sessions = server.views.sessions(job_id=job_id)
    live = next((s for s in reversed(sessions) if s["ended_at"] is None), None)
    events = server.pages.newest_events(job_id, EVENTS_SHOWN)
    ended = row["updated_at"] if JobState(row["state"]).is_final else now
    return Look(
        row=row,
        values={
            "job": row,
            "now": now,
            "sessions": sessions,
            "live": live,
            "events": events,
            "pace": row["seconds_per_step"],
            "tokens_per_s": server.pages.newest(job_id, "tokens_per_s"),
            "waiting": _waiting(server, row),
            "forecast": _forecast(row, machines, now),
            "problem": "",
            "asked": progress_of_request(live, events, now),
            "steps_bars": timeline.by_step(sessions, row["total_steps"]),
            "clock_bars": timeline.by_clock(sessions, row["created_at"], ended),
            "totals": timeline.totals(sessions, row["created_at"], ended),
            "checkpoints": _checkpoints(server, row, sessions),
            "samples": _samples(server, job_id),
            "readings": _readings(server, sessions),
            "last_words": _last_words(server, row, sessions),
        },
    )


def _waiting(server: Server, row: Row) -> Any:
    if row["state"] not in (JobState.QUEUED, JobState.LEASED):
        return None
    with server.ctx.uow() as tx:
        job = tx.job(row["id"])
    return dispatch.why_waiting(server.ctx, job) if job else None


def _forecast(row: Row, machines: Machines, now: float) -> Forecast | None:
    step_time, state = row["seconds_per_step"], JobState(row["state"])
    if step_time is None or state.is_final or state is JobState.PAUSED:
        return None
    spec = row["spec"].get("placement", {})
    wanted, accounts = spec.get("providers") or (), spec.get("accounts") or ()
    places = [
        p
        for p in machines.places()
        if p.member_id in (None, row["member_id"])
        and (not wanted or p.provider in wanted)
        and (not accounts or {p.account_id, p.name} & set(accounts))
    ]
    left = row["session"]["seconds_left"] if row["session"] else None
    return forecast(
        steps=row["total_steps"] - row["step"],
        step_s=step_time,
        step_time=StepTime(gpu_s=row["gpu_step_s"], host_s=row["host_step_s"]),
        session_left_s=left,
        places=places,
        now=now,
    )


_REQUESTS = {
    "job.pause_requested": ("pause requested", "job.paused"),
    "job.cancel_requested": ("cancel requested", "job.cancelled"),
    "job.handover_requested": ("hand-over requested", "job.queued"),
}
REMEMBERED_S = 60.0
"""How long a request that was carried out stays in view."""


def progress_of_request(live: Row | None, events: list[Row], now: float) -> list[tuple[str, float | None]] | None:
    """What a person asked last, on its way: `(what happened, when)`, None as long as it has not."""
    asked = next((e for e in events if e["kind"] in _REQUESTS), None)
    if asked is None:
        return None
    words, outcome = _REQUESTS[asked["kind"]]
    later = [e for e in events if e["id"] > asked["id"]]
    done = min((e["at"] for e in later if e["kind"] == outcome), default=None)
    overtaken = any(e["kind"] in ("job.pause_withdrawn", "job.succeeded", "job.failed") for e in later)
    if (done is None and overtaken) or (done is not None and now - done > REMEMBERED_S):
        return None
    told = done
    if (live is not None and live["id"] == asked["lease_id"]) or (live is not None and asked["lease_id"] is None):
        seen = live["last_seen_at"]
        told = seen if seen is not None and seen > asked["at"] else done
    return [(words, asked["at"]), ("the worker knows", told), ("done", done)]


def _checkpoints(server: Server, row: Row, sessions: list[Row]) -> list[Row]:
    found = server.views.checkpoints(row["id"])[-50:]
    losses = server.pages.values_at(row["id"], "eval_loss", [c["step"] for c in found]) if found else {}
    numbers = {s["id"]: n for n, s in enumerate(sessions, 1)}
    return [
        c
        | {
            "eval_loss": losses.get(c["step"]),
            "number": numbers.get(c["lease_id"]),
            "head": c["sha256"] == row["head"]["sha256"] if row["head"] else False,
        }
        for c in reversed(found)
    ]


def _samples(server: Server, job_id: str) -> list[tuple[str, list[Row]]]:
    """Each prompt with its answers, newest first."""
    found: dict[str, list[Row]] = {}
    for sample in server.views.samples(job_id, SAMPLES_READ):
        found.setdefault(sample["prompt"], []).insert(0, sample)
    return list(found.items())


def _readings(server: Server, sessions: list[Row]) -> tuple[int, list[Row]] | None:
    """The newest session that has told of its machine: its number and what it told."""
    for number in range(len(sessions), 0, -1):
        if found := server.views.readings(sessions[number - 1]["id"], READINGS_SHOWN):
            return number, found
    return None


def _last_words(server: Server, row: Row, sessions: list[Row]) -> str:
    """The end of the last session's output, where the job failed."""
    if row["state"] != JobState.FAILED or not sessions:
        return ""
    from orchestrator.entrypoints.dashboard.logs import tail

    return "\n".join(tail(server, sessions[-1], LAST_LINES_BYTES).splitlines()[-LAST_LINES:])
