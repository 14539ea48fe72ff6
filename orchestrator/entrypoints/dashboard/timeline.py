"""A job's time by activity and its steps by session, as bars in percent of the width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

PHASES = ("boot", "download", "load", "restore", "train", "eval", "save", "export", "wait")
NARROWEST = 0.25
"""Minimum width of a bar in percent."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar at `x` with `width`, both in percent. `kind` is its colour. `session` counts from 1, 0 is the queue."""

    x: float
    width: float
    kind: str
    session: int
    words: str


def by_step(sessions: Sequence[dict[str, Any]], total: int) -> list[Bar]:
    """Bars by step. Each step belongs to the last session that ran it."""
    bars: list[Bar] = []
    begun = [(n, s) for n, s in enumerate(sessions, 1) if s["started_at"] is not None]
    for place, (number, session) in enumerate(begun):
        following = begun[place + 1][1]["first_step"] if place + 1 < len(begun) else session["last_step"]
        first, last = session["first_step"], min(session["last_step"], following)
        if last > first:
            words = f"session {number}: steps {first + 1} to {last}"
            bars.append(_bar(first / total, last / total, f"s{(number - 1) % 6}", number, words))
    return bars


def by_clock(sessions: Sequence[dict[str, Any]], began: float, until: float) -> list[Bar]:
    """Bars by time: the queue, then the phases of each session in their usual order."""
    bars: list[Bar] = []
    whole = max(until - began, 1.0)
    free_since = began
    for number, session in enumerate(sessions, 1):
        start, end = session["created_at"], session["ended_at"] or until
        if start - free_since > 0.5:
            bars.append(_bar((free_since - began) / whole, (start - began) / whole, "queue", 0, "waiting in the queue"))
        for kind, left, right in _phases(session, start, end):
            words = f"session {number}: {kind} {right - left:.0f} s"
            bars.append(_bar((left - began) / whole, (right - began) / whole, kind, number, words))
        free_since = end
    return bars


def _phases(session: dict[str, Any], start: float, end: float) -> Iterator[tuple[str, float, float]]:
    spent = [(name, float(session["ledger"].get(name, 0.0))) for name in PHASES]
    begun = session["started_at"] or end
    yield "boot", start, min(begun, end)
    known = sum(s for _, s in spent)
    if not known:
        yield session["phase"], min(begun, end), end
        return
    scale = max(0.0, end - begun) / known
    at = begun
    for name, seconds in spent:
        if seconds > 0:
            yield name, at, at + seconds * scale
            at += seconds * scale


def totals(sessions: Sequence[dict[str, Any]], began: float, until: float) -> list[tuple[str, float]]:
    """Seconds in the queue and in each phase, summed over all sessions."""
    found: dict[str, float] = {"queue": 0.0}
    free_since = began
    for session in sessions:
        found["queue"] += max(0.0, session["created_at"] - free_since)
        free_since = session["ended_at"] or until
        for name, left, right in _phases(session, session["created_at"], free_since):
            found[name] = found.get(name, 0.0) + right - left
    return [(name, spent) for name, spent in found.items() if spent >= 0.5]


def _bar(left: float, right: float, kind: str, session: int, words: str) -> Bar:
    x, end = min(max(left * 100, 0.0), 100.0), min(max(right * 100, 0.0), 100.0)
    return Bar(x=round(x, 3), width=round(max(end - x, NARROWEST), 3), kind=kind, session=session, words=words)
