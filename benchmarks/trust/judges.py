"""Simulated judge models: how often a preference for a place is found, and how often it is claimed of a fair judge."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.report import Figure
from orchestrator.domain.trust.judge import Judged, Slot, conduct

RUNS = 4_000
PAIRS = 100
KNOWS = 0.8
"""Share of pairs of which the judge knows the better answer."""


def judges() -> Iterator[Figure]:
    """All figures of judges."""
    draw = np.random.default_rng(20_250_422)
    flagged = _flagged(draw, first=1.0)
    yield Figure(
        name=f"judge that takes the first answer where it does not know ({1 - KNOWS:.0%} of {PAIRS} pairs): flagged",
        value=round(flagged, 4),
        bar=">= 0.95",
        ok=flagged >= 0.95,
    )
    flagged = _flagged(draw, first=0.5)
    yield Figure(name="fair judge: flagged", value=round(flagged, 4), bar="<= 0.05", ok=flagged <= 0.05)
    always = conduct([Judged(adapter_first=Slot.FIRST, adapter_second=Slot.FIRST)] * PAIRS)
    name = "judge that always takes the first answer: flagged, and not usable"
    yield Figure(name=name, value=always.is_biased, bar="True", ok=always.is_biased and not always.is_usable)


def _flagged(draw: np.random.Generator, first: float) -> float:
    return sum(conduct(_pairs(draw, first)).is_biased for _ in range(RUNS)) / RUNS


def _pairs(draw: np.random.Generator, first: float) -> Iterator[Judged]:
    """Pairs in both orders. A judge that does not know takes the first place with the probability `first`."""
    for better, known, *drawn in draw.random((PAIRS, 4)):
        if known < KNOWS:
            yield _KNOWN[bool(better < 0.5)]
            continue
        one, other = (Slot.FIRST if number < first else Slot.SECOND for number in drawn)
        yield Judged(adapter_first=one, adapter_second=other)


_KNOWN = {
    True: Judged(adapter_first=Slot.FIRST, adapter_second=Slot.SECOND),
    False: Judged(adapter_first=Slot.SECOND, adapter_second=Slot.FIRST),
}
