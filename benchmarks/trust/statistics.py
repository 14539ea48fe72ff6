"""Error rates, coverage and power of the statistics of trust, simulated on the code that the product runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.report import Figure
from benchmarks.trust.audits import audits
from benchmarks.trust.judges import judges
from benchmarks.trust.votes import votes


def statistics(_: Path) -> Iterator[Figure]:
    """All figures that need no model."""
    yield from audits()
    yield from votes()
    yield from judges()
