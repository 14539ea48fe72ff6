"""The data of a job's page. It is read once for all viewers and rendered in sections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.domain.jobs import StepTime
from orchestrator.domain.lifecycle import JobState
from orchestrator.domain.pushes import Push
from orchestrator.domain.scheduling import Forecast, forecast
from orchestrator.domain.tracking import TrackedRun
from orchestrator.entrypoints.dashboard import timeline
from orchestrator.entrypoints.dashboard.render import fragment
from orchestrator.entrypoints.http.dependencies import Server
from orchestrator.services import dispatch, evaluations, judge_reports
from orchestrator.services.judge_reports import JudgeReport
from orchestrator.services.verdicts import Judged, judge
from worker.shared.benchmark_list import BENCHMARKS

SECTIONS = (
    "status",
    "evaluation",
    "push",
    "sessions",
    "time",
    "checkpoints",
    "samples",
    "machine",
    "events",
)
EVENTS_SHOWN = 40
SAMPLES_READ = 400
READINGS_SHOWN = 240
LAST_LINES_BYTES = 6_000
LAST_LINES = 50

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Look:
    """A snapshot of a job. `values` are the variables of the section templates."""

    row: Row
    values: Row

    def section(self, name: str) -> str:
        """One section as HTML."""
        return fragment(f"job_{name}.html", **self.values)

    def sections(self) -> dict[str, str]:
        """All sections by name."""
        return {name: self.section(name) for name in SECTIONS}


def look(server: Server, job_id: str, *, is_own: bool) -> Look | None:
    """The current snapshot of a job, or None if it was deleted. Without `is_own` it offers no actions."""
    now = server.ctx.clock.now()
    row = server.queries.job(job_id, now)
    if row is None:
        return None
    sessions = server.queries.sessions(job_id=job_id)
    live = next((s for s in reversed(sessions) if s["ended_at"] is None), None)
    events = server.dashboard_queries.newest_events(job_id, EVENTS_SHOWN)
    ended = row["updated_at"] if JobState(row["state"]).is_final else now
    return Look(
        row=row,
        values={
            "job": row,
            "is_own": is_own,
            "now": now,
            "sessions": sessions,
            "live": live,
            "events": events,
            "pace": row["seconds_per_step"],
            "tokens_per_s": server.dashboard_queries.newest(job_id, "tokens_per_s"),
            "judged": _judged(server, row),
            "waiting": _waiting(server, row),
            "forecast": _forecast(server, row, now),
            "problem": "",
            "asked": progress_of_request(live, events, now),
            "steps_bars": timeline.by_step(sessions, row["total_steps"]),
            "clock_bars": timeline.by_clock(sessions, row["created_at"], ended),
            "totals": timeline.totals(sessions, row["created_at"], ended),
            "checkpoints": _checkpoints(server, row, sessions),
            "samples": _samples(server, job_id),
            "judges": _judges(server, row),
            "pushes": _pushes(server, row),
            "tracked": _tracked(server, row),
            **_evaluated(server, job_id),
            "readings": _readings(server, sessions),
            "last_words": _last_words(server, row, sessions),
        },
    )


def _judged(server: Server, row: Row) -> Judged | None:
    """The verdict on the job's adapter, or None without an adapter."""
    if row["state"] != JobState.SUCCEEDED or not row["adapter"]:
        return None
    with server.ctx.uow() as tx:
        job = tx.jobs.get_many([row["id"]]).get(row["id"])
        return judge(tx, job) if job is not None else None


def _judges(server: Server, row: Row) -> list[JudgeReport]:
    """What judge models say of an evaluation, newest first."""
    if not row["spec"].get("evaluation"):
        return []
    with server.ctx.uow() as tx:
        return judge_reports.of_evaluation(tx, row["id"])


def _tracked(server: Server, row: Row) -> list[TrackedRun]:
    """The job's runs at experiment trackers."""
    with server.ctx.uow() as tx:
        return tx.tracking.of_job(row["id"]) if row["spec"].get("report_to") else []


def _pushes(server: Server, row: Row) -> list[Push]:
    """The pushes of the job's adapter to the Hugging Face hub, newest first."""
    with server.ctx.uow() as tx:
        return tx.pushes.of_job(row["id"]) if row["adapter"] else []


def _evaluated(server: Server, job_id: str) -> dict[str, Any]:
    """The evaluations of a job. Of an evaluation, itself with the audits of the data behind it."""
    found = evaluations.listed(server.ctx, job_id)
    own = [job for _, job in found if job.id == job_id]
    audits = evaluations.audits_of(server.ctx, own).get(job_id, ())
    return {"evaluations": found, "audits": audits, "benchmarks": tuple(BENCHMARKS.values())}


def _waiting(server: Server, row: Row) -> Any:
    if row["state"] not in (JobState.QUEUED, JobState.LEASED):
        return None
    return dispatch.why_waiting(server.ctx, row["id"])


def _forecast(server: Server, row: Row, now: float) -> Forecast | None:
    step_time, state = row["seconds_per_step"], JobState(row["state"])
    if step_time is None or state.is_final or state is JobState.PAUSED:
        return None
    spec = row["spec"].get("placement", {})
    wanted, accounts = spec.get("providers") or (), spec.get("accounts") or ()
    places = [
        p
        for p in server.machines.places()
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
    "job.handover_requested": ("hand-off requested", "job.queued"),
}
REMEMBERED_S = 60.0
"""How long a completed request stays visible."""


def progress_of_request(live: Row | None, events: list[Row], now: float) -> list[tuple[str, float | None]] | None:
    """The stages of the last request as `(stage, time)`. The time is None for a stage that is not reached.

    A machine that cannot call acknowledges nothing: what it reports was written before it could know of a request.
    """
    request = next((e for e in events if e["kind"] in _REQUESTS), None)
    if request is None:
        return None
    words, outcome = _REQUESTS[request["kind"]]
    later = [e for e in events if e["id"] > request["id"]]
    done = min((e["at"] for e in later if e["kind"] == outcome), default=None)
    overtaken = any(e["kind"] in ("job.pause_withdrawn", "job.succeeded", "job.failed") for e in later)
    if (done is None and overtaken) or (done is not None and now - done > REMEMBERED_S):
        return None
    if live is not None and live["one_way"]:
        return [(words, request["at"]), ("done", done)]
    acknowledged_at = done
    if (live is not None and live["id"] == request["lease_id"]) or (live is not None and request["lease_id"] is None):
        seen = live["last_seen_at"]
        acknowledged_at = seen if seen is not None and seen > request["at"] else done
    return [(words, request["at"]), ("acknowledged", acknowledged_at), ("done", done)]


def _checkpoints(server: Server, row: Row, sessions: list[Row]) -> list[Row]:
    checkpoints = server.queries.checkpoints(row["id"])[-50:]
    losses = (
        server.dashboard_queries.values_at(row["id"], "eval_loss", [c["step"] for c in checkpoints])
        if checkpoints
        else {}
    )
    numbers = {s["id"]: n for n, s in enumerate(sessions, 1)}
    return [
        c
        | {
            "eval_loss": losses.get(c["step"]),
            "number": numbers.get(c["lease_id"]),
            "head": c["sha256"] == row["head"]["sha256"] if row["head"] else False,
        }
        for c in reversed(checkpoints)
    ]


def _samples(server: Server, job_id: str) -> list[tuple[str, list[Row]]]:
    """Each prompt with its answers, newest first."""
    answers: dict[str, list[Row]] = {}
    for sample in server.queries.samples(job_id, SAMPLES_READ):
        answers.setdefault(sample["prompt"], []).insert(0, sample)
    return list(answers.items())


def _readings(server: Server, sessions: list[Row]) -> tuple[int, list[Row]] | None:
    """Number and readings of the newest session with hardware data."""
    for number in range(len(sessions), 0, -1):
        if readings := server.queries.readings(sessions[number - 1]["id"], READINGS_SHOWN):
            return number, readings
    return None


def _last_words(server: Server, row: Row, sessions: list[Row]) -> str:
    """The end of the last session's output if the job failed, else an empty string."""
    if row["state"] != JobState.FAILED or not sessions:
        return ""
    from orchestrator.entrypoints.dashboard.logs import tail

    return "\n".join(tail(server, sessions[-1], LAST_LINES_BYTES).splitlines()[-LAST_LINES:])
