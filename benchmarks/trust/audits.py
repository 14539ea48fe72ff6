"""Simulated audits: coverage of the intervals, wrong decisions at the threshold, forecasts of rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import islice

import numpy as np

from benchmarks.report import Figure
from orchestrator.domain.trust.audit_decision import LEAST_ROWS, Decision, decide, forecast, limits
from orchestrator.domain.trust.audit_estimate import Stratum, estimate
from orchestrator.domain.trust.intervals import Interval

RUNS = 10_000
SHARES = (0.05, 0.10, 0.27, 0.50)
SAMPLES = (40, 100, 200)
SIZE = 2_676
"""Rows of the paper's dataset."""
STRATA = {"one stratum": (1.0,), "three equal strata": (1.0, 1.0, 1.0), "three unequal strata": (0.2, 0.8, 2.0)}
"""Share of wrong rows in each stratum, as a factor of the share in the dataset."""
LONGEST = 600
THRESHOLDS = (0.05, 0.10, 0.27)
SEEN = ((5, 20), (1, 40), (2, 40), (8, 40), (4, 80), (16, 80), (23, 150))
"""Wrong rows and rows of audits that are still open at 10 %."""
FACTOR = 1.5
SMALL, SMALL_RUNS = 300, 1_000


def audits() -> Iterator[Figure]:
    """All figures of audits."""
    draw = np.random.default_rng(20_250_415)
    for strata, factors in STRATA.items():
        for n in SAMPLES:
            yield from _coverage(draw, strata, factors, n)
    for max_wrong in THRESHOLDS:
        yield _at_the_threshold(draw, max_wrong)
    yield from _small_files(draw)
    yield from _forecasts(draw)


def _coverage(draw: np.random.Generator, strata: str, factors: tuple[float, ...], n: int) -> Iterator[Figure]:
    low, high = (0.925, 0.985) if n == min(SAMPLES) else (0.93, 0.98)
    for share in SHARES:
        if max(factors) * share > 1:
            continue
        sizes = [SIZE // len(factors)] * len(factors)
        wrong = [round(size * share * factor) for size, factor in zip(sizes, factors, strict=True)]
        truth = sum(wrong) / sum(sizes)
        parts = [n // len(factors) + (place < n % len(factors)) for place in range(len(factors))]
        found = np.stack([draw.hypergeometric(w, s - w, k, RUNS) for w, s, k in zip(wrong, sizes, parts, strict=True)])
        held = sum(_holds(tuple(map(int, hits)), tuple(parts), tuple(sizes), truth) for hits in found.T) / RUNS
        name = f"audits of {n} rows, {share:.0%} wrong, {strata}: intervals with the truth"
        yield Figure(name=name, value=round(held, 4), bar=f"{low} to {high}", ok=low <= held <= high)


def _holds(hits: tuple[int, ...], parts: tuple[int, ...], sizes: tuple[int, ...], truth: float) -> bool:
    found = _interval(hits, parts, sizes)
    return found.low <= truth <= found.high


@cache
def _interval(hits: tuple[int, ...], parts: tuple[int, ...], sizes: tuple[int, ...]) -> Interval:
    seen = zip(hits, parts, sizes, strict=True)
    return estimate([Stratum(size=size, wrong=hit, correct=rows - hit) for hit, rows, size in seen]).wrong


def _at_the_threshold(draw: np.random.Generator, max_wrong: float) -> Figure:
    """Audits of a dataset whose share is exactly the threshold: every decision is wrong."""
    wrong = (draw.random((RUNS, LONGEST)) < max_wrong).cumsum(axis=1, dtype=np.int32)
    decided = float(np.isfinite(_decided_at(wrong, 0, max_wrong)).mean())
    name = f"wrong decisions exactly at a threshold of {max_wrong:.0%}, looking after each of {LONGEST} rows"
    return Figure(name=name, value=round(decided, 4), bar="<= 0.05", ok=decided <= 0.05)


def _small_files(draw: np.random.Generator) -> Iterator[Figure]:
    """Audits of files that may be read to their end, with one wrong row more than the limit allows, or just as many."""
    for wrong, mistake in ((SMALL // 10, Decision.FAIL), (SMALL // 10 + 1, Decision.PASS)):
        file = np.arange(SMALL) < wrong
        made = sum(_first_decision(draw.permutation(file).cumsum()) is mistake for _ in range(SMALL_RUNS)) / SMALL_RUNS
        name = f"file of {SMALL} rows, {wrong} wrong, limit 10 %, looking after each row: {mistake}"
        yield Figure(name=name, value=round(made, 4), bar="<= 0.05", ok=made <= 0.05)


def _first_decision(wrong: np.ndarray) -> Decision:
    for n, count in enumerate(map(int, wrong), 1):
        found = decide(wrong=count, correct=n - count, unsure=0, rows=SMALL, max_wrong=0.1)
        if n >= LEAST_ROWS and found is not Decision.OPEN:
            return found
    return Decision.OPEN


def _decided_at(wrong: np.ndarray, before: int, max_wrong: float) -> np.ndarray:
    """The column in which each row of counts is decided (from 1), or infinity. `before` rows were seen earlier."""
    length = wrong.shape[1]
    most, least = np.array(list(islice(limits(before + 1, max_wrong), length))).T
    enough = np.arange(before + 1, before + 1 + length) >= LEAST_ROWS
    decided = ((wrong <= most) | (wrong >= least)) & enough
    return np.where(decided.any(axis=1), decided.argmax(axis=1) + 1.0, np.inf)


def _forecasts(draw: np.random.Generator) -> Iterator[Figure]:
    """Forecasts of open audits, against audits whose true share is what their rows leave possible."""
    for wrong, n in SEEN:
        expected = forecast(wrong=wrong, n=n, max_wrong=0.1)
        shares = draw.beta(wrong + 0.5, n - wrong + 0.5, RUNS)[:, None]
        counts = wrong + (draw.random((RUNS, 1_500)) < shares).cumsum(axis=1, dtype=np.int32)
        needed = float(np.median(_decided_at(counts, n, 0.1)))
        ratio = (expected or np.inf) / needed
        name = f"{wrong} of {n} rows wrong, limit 10 %: forecast {expected}, simulated median {needed:.0f}, ratio"
        ok = 1 / FACTOR <= ratio <= FACTOR
        yield Figure(name=name, value=round(ratio, 3), bar=f"within a factor of {FACTOR}", ok=ok)
