"""Rows of unusual length: far from the median of the logarithm, in median absolute deviations."""

from __future__ import annotations

from array import array

import numpy as np

from worker.shared.data_checks.findings import Found, RowsFound
from worker.shared.data_checks.texts import Seen

DEVIATIONS = 5.0
LEAST_DEVIATION = 0.1
"""Of the logarithm. Rows that are nearly all of one length have no outlier a few characters away."""
LEAST_ROWS = 20


class Lengths:
    """Measures all rows in characters."""

    def __init__(self) -> None:
        self._lengths, self._lines = array("d"), array("Q")

    def add(self, seen: Seen) -> None:
        """Measure a row."""
        self._lengths.append(np.log1p(sum(map(len, seen.normal_turns))))
        self._lines.append(seen.line)

    def findings(self) -> tuple[RowsFound, ...]:
        """The outliers. No row is removed for its length."""
        found, lengths = Found("length_outliers"), np.frombuffer(self._lengths)
        if len(lengths) < LEAST_ROWS:
            return ()
        middle = np.median(lengths)
        deviation = max(float(np.median(np.abs(lengths - middle))), LEAST_DEVIATION)
        for place in np.flatnonzero(np.abs(lengths - middle) > DEVIATIONS * deviation).tolist():
            found.add_row(place, self._lines[place])
        usual = f"{np.expm1(middle):,.0f}"
        words = "{count} of {total} rows ({share}) are much shorter or longer than the usual " + usual + " characters"
        return found.finding(words, total=len(lengths))
