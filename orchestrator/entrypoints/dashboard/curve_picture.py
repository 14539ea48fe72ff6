"""A job's loss as an SVG picture that needs no script: one line for each session, a mark at each hand-off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.adapters.database.dashboard_queries import Point
from orchestrator.entrypoints.dashboard.curve import decimate

WIDTH, HEIGHT = 900, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 18, 46
POINTS = 800
TICKS = 4


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the picture. `points` is the attribute of an SVG polyline. `kind` is its class."""

    kind: str
    points: str


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A value at an axis, and where it is in pixels."""

    at: float
    words: str


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Lines, hand-offs (their x in pixels) and the values at both axes. Without lines there is nothing to draw."""

    lines: tuple[Line, ...]
    marks: tuple[float, ...]
    steps: tuple[Tick, ...]
    values: tuple[Tick, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def draw(
    loss: Sequence[Point], eval_loss: Sequence[Point], numbers: dict[int, int], hops: Sequence[int], total: int
) -> Picture:
    """The picture. `numbers` has the session of each fence, counted from 1. `hops` are the steps of hand-offs."""
    shown, held_out = decimate(loss, POINTS), decimate(eval_loss, POINTS)
    values = [row[1] for row in (*shown, *held_out)]
    if not values:
        return Picture(lines=(), marks=(), steps=(), values=())
    low, high = min(values), max(values)
    pad = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    low, high, last = low - pad, high + pad, max(total, 1)

    def x(step: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * step / last, 1)

    def y(value: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low), 1)

    def line(kind: str, rows: Sequence[Point]) -> Line:
        return Line(kind=kind, points=" ".join(f"{x(row[0])},{y(row[1])}" for row in rows))

    lines = [line(f"s{(number - 1) % 6}", rows) for number, rows in _by_session(shown, numbers)]
    lines += [line("held-out", held_out)] if held_out else []
    return Picture(
        lines=tuple(lines),
        marks=tuple(x(step) for step in hops),
        steps=tuple(Tick(at=x(step), words=f"{step:,}") for step in _steps(last)),
        values=tuple(Tick(at=y(value), words=f"{value:.3g}") for value in _values(low, high)),
    )


def _by_session(rows: Sequence[Point], numbers: dict[int, int]) -> list[tuple[int, list[Point]]]:
    """The rows of each session in their order. A session's line begins at the last point of the one before it."""
    found: list[tuple[int, list[Point]]] = []
    for row in rows:
        number = numbers.get(row[3], 1)
        if not found or found[-1][0] != number:
            found.append((number, [found[-1][1][-1]] if found else []))
        found[-1][1].append(row)
    return found


def _steps(last: int) -> list[int]:
    return sorted({round(last * part / TICKS) for part in range(TICKS + 1)})


def _values(low: float, high: float) -> list[float]:
    """Round values between both, about `TICKS` of them."""
    rough = (high - low) / TICKS
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= rough)
    first = math.ceil(low / step)
    return [n * step for n in range(first, math.floor(high / step) + 1)]
