"""Curves of jobs written to experiment trackers: each step once, from checkpoints that stay, whatever is cut.

Only steps that a checkpoint has are written, because a lost session's later steps are trained again and trackers keep
what they have. What a tracker has is read back from it before each write, so a server or a writer that is killed at any
time repeats nothing. A final state is told in a write of its own, after everything was found at the tracker.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePath
from typing import Any, cast

import structlog

from orchestrator.domain.errors import TrainhopError
from orchestrator.domain.jobs import Job, Lease
from orchestrator.domain.tracking import MAX_STEPS, Point, TrackedRun, TrackerLogin, last_complete, points
from orchestrator.ports.repository import Transaction
from orchestrator.ports.tracking import RunRequest, TrackerError, Trackers
from orchestrator.services.context import Context
from orchestrator.services.single_flight import SingleFlight
from orchestrator.services.tracker_logins import login_of

log = structlog.get_logger()

RETRY_S = (5.0, 30.0, 120.0, 600.0, 1_800.0, 3_600.0)
"""Waits after failures. The last one is repeated."""
GIVE_UP_S = 7 * 86_400.0
"""After the end of a job."""
LOOK_AGAIN_S = 5.0
"""After a look that found nothing to write."""
AT_ONCE = 8
"""Writers at work at the same time, each a process. One of each member at each tracker."""
MAX_DUE = 500
MAX_SESSIONS = 100
"""Sessions that the notes of a run name."""
RUNNING = "running"
PRIVATE = frozenset(
    {"name", "datasets", "sample_prompts", "chat_template_jinja", "placement", "lora_model_dir"}
    | {"evaluate", "hub_model_id", "report_to"}
)
"""Keys of a job file that name a person's data, texts or accounts. They are not sent."""


@dataclass(frozen=True, kw_only=True)
class ReportingContext:
    """The context of every use case, the trackers, and what this process writes now."""

    ctx: Context
    trackers: Trackers
    running: SingleFlight[None] = field(default_factory=SingleFlight[None])
    room: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(AT_ONCE))


def report_due(context: ReportingContext) -> None:
    """Write the runs that have something new, in threads of their own. Does not wait for them."""
    with context.ctx.uow() as tx:
        due = tx.tracking.due(context.ctx.clock.now(), MAX_DUE)
    calls = {f"{run.member_id}/{run.tracker}": partial(_work_safely, context, run) for run in reversed(due)}
    context.running.gather(calls, patience_s=0.0, on_late=lambda: None)


def _work_safely(context: ReportingContext, run: TrackedRun) -> None:
    if not context.room.acquire(blocking=False):
        return
    try:
        work(context, run.job_id, run.tracker)
    except Exception:
        log.exception("a run was not written; retrying in a later round", job=run.job_id, tracker=run.tracker)
    finally:
        context.room.release()


@dataclass(frozen=True, kw_only=True)
class _News:
    """What can be written of a job now. `is_all` says that nothing of its checkpoints is missing from it.

    `upto` is the last step that was looked at. `state` is the job's.
    """

    points: list[Point]
    upto: int
    is_all: bool
    is_final: bool
    state: str

    @property
    def told(self) -> str:
        """The state to tell: that of an ended job once all its steps are at the tracker."""
        return self.state if self.is_final and self.is_all and not self.points else RUNNING


def work(context: ReportingContext, job_id: str, tracker: str) -> None:
    """Write what is new of one run, if it may be tried now."""
    ctx = context.ctx
    with ctx.uow() as tx:
        run = next((one for one in tx.tracking.of_job(job_id) if one.tracker == tracker), None)
        job = tx.jobs.get_many([job_id]).get(job_id)
        if run is None or job is None or run.told or run.gave_up_at is not None or run.not_before > ctx.clock.now():
            return
        news = _news(tx, job, run.written_step)
        leases = tx.leases.of_job(job_id)
    if not news.points and news.told == RUNNING:
        run.written_step, run.not_before = max(run.written_step, news.upto), ctx.clock.now() + LOOK_AGAIN_S
        _keep(ctx, run)
        return
    try:
        _write(context, run, job, leases)
    except (TrackerError, TrainhopError) as error:
        _wait(ctx, run, job, str(error))
    except Exception:
        log.exception("a tracker met an unexpected error", job=job_id, tracker=tracker)
        _wait(ctx, run, job, "The server had an unexpected error. Its log says more.")
    else:
        run.reason, run.attempts, run.not_before = "", 0, 0.0
        _keep(ctx, run)


def _write(context: ReportingContext, run: TrackedRun, job: Job, leases: list[Lease]) -> None:
    ctx = context.ctx
    login = login_of(ctx, run.member_id, run.tracker)
    if words := context.trackers.fault(run.tracker, login):
        raise TrackerError(words)
    request = RunRequest(
        tracker=run.tracker,
        run_id=job.id,
        name=job.name,
        config=config_of(job),
        notes=notes_of(leases),
        created_at=job.created_at,
        login=login or TrackerLogin(),
    )
    with context.trackers.open(request) as opened:
        with ctx.uow() as tx:
            current = tx.jobs.get_many([job.id])[job.id]
            news = _news(tx, current, opened.last_step)
        run.url = opened.write(news.points, news.told) or run.url
    run.written_step = max(opened.last_step, news.upto)
    run.told = "" if news.told == RUNNING else news.told


def _news(tx: Transaction, job: Job, after: int) -> _News:
    rows = tx.tracking.curve(job.id, after, MAX_STEPS)
    found = points(rows)
    reporting = [
        lease.first_step if lease.started_at is not None else job.head_step
        for lease in tx.leases.of_job(job.id)
        if lease.collected_at is None
    ]
    last = last_complete(
        sorted(row.step for row in rows if row.name == "loss"),
        after=after,
        head_step=job.head_step,
        open_from=min(reporting, default=None),
        newest=tx.tracking.newest_step(job.id),
    )
    if len(found) >= MAX_STEPS:  # there may be more
        last = min(last, found[-1].step)
    chosen = [point for point in found if point.step <= last]
    return _News(
        points=chosen,
        upto=last,
        is_all=last >= job.head_step,
        is_final=job.state.is_final,
        state=job.state.value,
    )


def config_of(job: Job) -> dict[str, Any]:
    """The settings of a job without what names a person's data, texts or accounts, and of a local model its name."""
    found = {
        key: ", ".join(str(each) for each in cast("list[Any]", value)) if isinstance(value, list) else value
        for key, value in job.spec.items()
        if key not in PRIVATE and isinstance(value, str | int | float | bool | list)
    }
    base = str(found.get("base_model", ""))
    return found | {
        "base_model": PurePath(base).name if PurePath(base).is_absolute() else base,
        "rows": sum(int(data.get("rows") or 0) for data in job.spec.get("datasets", ())),
    }


def notes_of(leases: list[Lease]) -> str:
    """One line for each session: its machine and its steps."""
    started = sorted((lease for lease in leases if lease.started_at is not None), key=lambda lease: lease.fence)
    lines = [_line(number, lease) for number, lease in enumerate(started, start=1)]
    return "\n".join(lines[-MAX_SESSIONS:])


def _line(number: int, lease: Lease) -> str:
    machine = str(lease.hardware.get("name") or lease.hardware.get("device") or "a machine")[:100]
    return f"Session {number}: {machine} ({lease.provider}), from step {lease.first_step} to {lease.step}."


def _wait(ctx: Context, run: TrackedRun, job: Job, words: str) -> None:
    """Try again later. Give up if the job ended long ago."""
    now = ctx.clock.now()
    run.reason = words
    run.not_before = now + RETRY_S[min(run.attempts, len(RETRY_S) - 1)]
    run.attempts += 1
    if job.state.is_final and now > job.updated_at + GIVE_UP_S:
        run.gave_up_at = now
    _keep(ctx, run)


def _keep(ctx: Context, run: TrackedRun) -> None:
    """Record the attempt, unless the run was ended meanwhile. An end is not told of a job that was queued again."""
    with ctx.uow() as tx:
        job = tx.jobs.get(run.job_id)  # locked before its runs
        current = tx.tracking.get_for_update(run.job_id, run.tracker)
        if job is not None and current is not None and current.gave_up_at is None:
            run.told = run.told if job.state.value == run.told else ""
            tx.tracking.save(run)
