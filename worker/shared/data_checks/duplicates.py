"""Findings about copies in one file."""

from __future__ import annotations

import numpy as np

from worker.shared.data_checks.copies import Copies
from worker.shared.data_checks.findings import Found, RowsFound


def duplicates(copies: Copies, near: list[tuple[int, int]], rows: int) -> tuple[RowsFound, ...]:
    """Exact duplicates and near-copies among the first `rows` rows. They name the rows beyond the first of each."""
    exact, alike = Found("exact_duplicates"), Found("near_copies")
    first_of, lines = copies.exact()[:rows], copies.lines
    repeated = set(np.flatnonzero(first_of != np.arange(rows)).tolist())
    for number in sorted(repeated):
        exact.add_row(number, lines[number], lines[int(first_of[number])])
    originals: dict[int, int] = {}
    for first, second in near:
        if second < rows:
            originals.setdefault(second, first)
    for number in sorted(originals):
        alike.add_row(number, lines[number], lines[originals[number]])
    return exact.finding("{count} of {total} rows ({share}) repeat an earlier row exactly", total=rows) + alike.finding(
        "{count} of {total} rows ({share}) are nearly the same as an earlier row", total=rows
    )
