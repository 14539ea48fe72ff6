"""Whether validation rows are unlike training rows: a population stability index, judged by 200 other splits."""

from __future__ import annotations

from array import array
from math import log

import numpy as np

from worker.shared.data_checks.findings import Found, RowsFound
from worker.shared.data_checks.leaks import PROMPTS, VALIDATION
from worker.shared.data_checks.texts import Seen

SPLITS = 200
SIGNIFICANT = 0.01
BINS = 10
LEAST_ROWS = 20
"""Rows of each side. With fewer no shift can be seen."""
SEED = 20
NAMES = ("length of prompts", "length of answers", "number of turns")
ANSWERS = NAMES.index("length of answers")


class Shift:
    """Measures three properties of each row. `names` says what the held-out rows are."""

    def __init__(self, names: str = VALIDATION) -> None:
        self._called = names
        self._values = tuple(array("d") for _ in NAMES)
        self._train = 0

    def add(self, seen: Seen, *, is_held_out: bool) -> None:
        """Measure a row. Training rows come first."""
        self._train += not is_held_out
        answers = sum(len(turn.content) for turn in seen.answers)
        everything = sum(len(turn.content) for turn in seen.turns)
        for values, value in zip(
            self._values, (log(1 + everything - answers), log(1 + answers), len(seen.turns)), strict=True
        ):
            values.append(value)

    def findings(self) -> tuple[RowsFound, ...]:
        """The shift, if it is larger than in nearly all random splits."""
        rows = len(self._values[0])
        held_out = rows - self._train
        if min(self._train, held_out) < LEAST_ROWS:
            return ()
        compared = [(name, np.frombuffer(values)) for name, values in zip(NAMES, self._values, strict=True)]
        if self._called == PROMPTS:  # nobody sees the answers of their rows
            del compared[ANSWERS]
        binned = [_bins(values) for _, values in compared]
        chosen = np.zeros(rows, bool)
        chosen[self._train :] = True
        here = [_index(bins, chosen) for bins in binned]
        dice, as_large = np.random.default_rng(SEED), 0
        for _ in range(SPLITS):
            other = dice.permutation(chosen)
            as_large += sum(_index(bins, other) for bins in binned) >= sum(here)
        p = (1 + as_large) / (1 + SPLITS)
        if p >= SIGNIFICANT:
            return ()
        found, worst = Found("shift"), int(np.argmax(here))
        words = (
            f"the {self._called} differ from the training rows, most in the {compared[worst][0]} "
            f"(index {here[worst]:.2f}, p < {SIGNIFICANT})"
        )
        return found.finding(words, total=held_out, count=held_out, share=1.0)


def _bins(values: np.ndarray) -> np.ndarray:
    edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))
    return np.searchsorted(edges, values, side="right")


def _index(bins: np.ndarray, chosen: np.ndarray) -> float:
    """The population stability index of two parts, with half a row in each bin more."""
    size = int(bins.max()) + 1
    one = np.bincount(bins[~chosen], minlength=size) + 0.5
    other = np.bincount(bins[chosen], minlength=size) + 0.5
    a, b = one / one.sum(), other / other.sum()
    return float(np.sum((b - a) * np.log(b / a)))
