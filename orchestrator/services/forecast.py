"""When a job will be done, with the sessions and the quota that it still needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.domain.scheduling import Candidate, StepTime, estimate_sessions

LAST_SAVE_S = 10.0
"""What the end of a session costs before anything has been measured."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """`seconds` from now, in `sessions` more sessions besides the one that runs; `waits_until` is a quota's return."""

    seconds: float
    sessions: int
    waits_until: float | None = None


def forecast(
    *,
    steps: int,
    step_s: float,
    step_time: StepTime,
    session_left_s: float | None,
    places: Sequence[Candidate],
    now: float,
) -> Forecast | None:
    """When `steps` more steps are done; None where nothing is known that could go on with them.

    `session_left_s` is what the running session has left (None: none runs), and `step_s` what a step takes there; `places`
    are those the job may use, at its `step_time`.
    """
    here = max(0.0, session_left_s - LAST_SAVE_S) if session_left_s is not None else 0.0
    if session_left_s is not None and steps * step_s <= here:
        return Forecast(seconds=steps * step_s, sessions=0)
    rest = steps - (here / step_s if here else 0.0)
    found = [_elsewhere(rest * step_time.guess(gpu=p.gpu), here, p, now) for p in places if p.session_s > 0]
    return min(found, key=lambda f: f.seconds, default=None)


def _elsewhere(work_s: float, already: float, place: Candidate, now: float) -> Forecast:
    sessions, spent = estimate_sessions(work_s, place.session_s, place)
    ends = already + spent
    short = place.hours_left is not None and place.hours_left * 3600 - already < spent
    if short and place.refresh_at is not None and place.refresh_at > now:
        before = max(0.0, (place.hours_left or 0.0) * 3600 - already)
        ends = (place.refresh_at - now) + (spent - before)
        return Forecast(seconds=max(ends, already + spent), sessions=sessions, waits_until=place.refresh_at)
    return Forecast(seconds=ends, sessions=sessions)
