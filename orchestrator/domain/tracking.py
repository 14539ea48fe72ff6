"""Runs at experiment trackers: which steps may be written, each once, and what a tracker was told."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

MAX_STEPS = 2_000
"""Steps that are written at once."""
HIDDEN = frozenset({"batch_crc32"})
"""Values of the curve that are checksums and not measurements."""
SESSION = "session"
"""The value that says which lease of the job has trained a step, so that hand-offs are seen in every tracker."""


@dataclass(frozen=True, kw_only=True)
class TrackerLogin:
    """Where and how the server writes a member's runs: an address, a key, and the name of a project. Each may be empty.

    `is_trusted` says that an admin has set it, so the address may be in the server's own network.
    """

    url: str = ""
    key: str = field(default="", repr=False)
    project: str = ""
    is_trusted: bool = False


@dataclass(kw_only=True)
class SealedLogin:
    """A login as it is stored."""

    member_id: str
    tracker: str
    sealed: str


@dataclass(kw_only=True)
class TrackedRun:
    """One job at one tracker. The run's id there is the job's id.

    Steps up to `written_step` were written. `told` is the final state of the job that the tracker was told, or empty.
    `reason` says why the last attempt failed, `attempts` counts failures since the last success, and nothing is tried
    before `not_before`. After `gave_up_at` nothing is tried any more. `url` is the run's page.
    """

    job_id: str
    tracker: str
    member_id: str
    created_at: float
    written_step: int = -1
    told: str = ""
    reason: str = ""
    attempts: int = 0
    not_before: float = 0.0
    gave_up_at: float | None = None
    url: str = ""


@dataclass(frozen=True, kw_only=True)
class CurveRow:
    """One value of a job's curve. `fence` is that of the lease that reported it."""

    step: int
    name: str
    value: float
    fence: int
    at: float


@dataclass(frozen=True, kw_only=True)
class Point:
    """All values of one step, and when they were reported (epoch seconds)."""

    step: int
    at: float
    values: dict[str, float]


def points(rows: Iterable[CurveRow]) -> list[Point]:
    """The curve by step. Values that no chart can show, and checksums, are left out."""
    by_step: dict[int, list[CurveRow]] = {}
    for row in rows:
        by_step.setdefault(row.step, []).append(row)
    return [_point(step, found) for step, found in sorted(by_step.items())]


def _point(step: int, rows: Sequence[CurveRow]) -> Point:
    values = {row.name: row.value for row in rows if row.name not in HIDDEN and math.isfinite(row.value)}
    newest = max(rows, key=lambda row: row.fence)
    return Point(step=step, at=max(row.at for row in rows), values=values | {SESSION: float(newest.fence)})


def last_complete(trained: Sequence[int], *, after: int, head_step: int, open_from: int | None, newest: int) -> int:
    """The last step that may be written after `after`: it is in a checkpoint, and nothing of it can still arrive.

    `trained` are the steps that have a loss, ascending. `open_from` is the first step of which a session may still
    report, None if there is none. Before it, a gap stays. From there on, a step is complete if a later one was reported
    (`newest`), because a session reports in order, and a gap may still be filled.
    """
    if open_from is None or after >= head_step:
        return head_step
    last = max(after, min(open_from - 1, head_step))
    known = set(trained)
    while last < min(head_step, newest - 1) and (last + 1 == open_from or last + 1 in known):
        last += 1
    return last
