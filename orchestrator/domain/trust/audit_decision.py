"""Decides whether a dataset has at most a given share of wrong rows, at any time during its audit.

The evidence against "the share is exactly `max_wrong`" is a ratio of likelihoods: that of a share drawn from
Beta(.5, .5), divided by that of `max_wrong`. It reaches 20 with a probability of at most 5 %, however often one looks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import count, takewhile

PRIOR = 0.5
EVIDENCE = 20.0
LEAST_ROWS = 20
"""Rows before the first decision, unless there are no others."""
MAX_FORECAST = 2_000
"""Maximum rows that a forecast looks ahead."""
NEGLIGIBLE = 1e-7
"""Probability below which a course of the audit is left out of a forecast."""


class Decision(StrEnum):
    """What is known of the share of wrong rows: at most `max_wrong`, more, or neither yet."""

    PASS = "pass"  # noqa: S105  no password
    FAIL = "fail"
    OPEN = "open"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A decision. While it is open, `more` is the forecast of rows to decide (None: more than `MAX_FORECAST`)."""

    decision: Decision
    more: int | None = 0


def decide(*, wrong: int, correct: int, unsure: int, rows: int, max_wrong: float) -> Decision:
    """Pass only if it holds with every unsure row wrong, fail only if it holds with every unsure row correct.

    `rows` is the number of rows of the dataset that can be checked.
    """
    if not 0 < max_wrong < 1:
        raise ValueError("max_wrong must be between 0 and 1.")
    n = wrong + correct + unsure
    if _settled(wrong, n, rows, max_wrong) is Decision.FAIL:
        return Decision.FAIL
    return Decision.PASS if _settled(wrong + unsure, n, rows, max_wrong) is Decision.PASS else Decision.OPEN


def standing(*, wrong: int, correct: int, unsure: int, rows: int, max_wrong: float) -> Standing:
    """The decision of `decide`, with the forecast of rows to come while it is open."""
    decision = decide(wrong=wrong, correct=correct, unsure=unsure, rows=rows, max_wrong=max_wrong)
    if decision is not Decision.OPEN:
        return Standing(decision=decision)
    n = wrong + correct + unsure
    more, left = forecast(wrong=wrong, n=wrong + correct, max_wrong=max_wrong), max(0, rows - n)
    if more is None:
        return Standing(decision=decision, more=left if left <= MAX_FORECAST else None)
    decided = max(wrong + correct, 1) / max(n, 1)
    return Standing(decision=decision, more=min(left, max(1, math.ceil(more / decided))))


def _settled(wrong: int, n: int, rows: int, max_wrong: float) -> Decision:
    if wrong > max_wrong * rows:
        return Decision.FAIL
    if wrong + rows - n <= max_wrong * rows:
        return Decision.PASS
    most, least = next(limits(n, max_wrong))
    if n < LEAST_ROWS or most < wrong < least:
        return Decision.OPEN
    return Decision.PASS if wrong <= most else Decision.FAIL


def log_evidence(wrong: int, n: int, max_wrong: float) -> float:
    """Natural logarithm of the evidence that the share is not `max_wrong`."""
    a, b = wrong + PRIOR, n - wrong + PRIOR
    mixture = math.lgamma(a) + math.lgamma(b) - math.lgamma(n + 2 * PRIOR) - _PRIOR_AREA
    return mixture - wrong * math.log(max_wrong) - (n - wrong) * math.log1p(-max_wrong)


_PRIOR_AREA = 2 * math.lgamma(PRIOR) - math.lgamma(2 * PRIOR)


def limits(n: int, max_wrong: float) -> Iterator[tuple[int, int]]:
    """For `n` rows, `n + 1` rows and so on: the most wrong rows that pass (-1: none), and the fewest that fail."""
    enough = math.log(EVIDENCE)
    most, least = -1, math.floor(n * max_wrong) + 1
    for size in count(n):
        while most + 1 <= size * max_wrong and log_evidence(most + 1, size, max_wrong) >= enough:
            most += 1
        least = max(least, math.floor(size * max_wrong) + 1)
        while least <= size and log_evidence(least, size, max_wrong) < enough:
            least += 1
        yield most, least


@lru_cache(maxsize=1024)
def forecast(*, wrong: int, n: int, max_wrong: float) -> int | None:
    """Median number of further rows until a decision, or None if that is more than `MAX_FORECAST`.

    The rows to come are predicted from those seen: the next one is wrong with the probability (wrong + .5) / (n + 1).
    """
    chances = {wrong: 1.0}
    bounds = limits(n + 1, max_wrong)
    for more in takewhile(lambda number: number <= MAX_FORECAST, count(1)):
        most, least = next(bounds)
        size = n + more
        following: dict[int, float] = {}
        for seen, chance in chances.items():
            further = chance * (seen + PRIOR) / (size - 1 + 2 * PRIOR)
            following[seen + 1] = following.get(seen + 1, 0.0) + further
            following[seen] = following.get(seen, 0.0) + chance - further
        if size >= LEAST_ROWS:
            following = {seen: chance for seen, chance in following.items() if most < seen < least}
        chances = {seen: chance for seen, chance in following.items() if chance > NEGLIGIBLE}
        if sum(chances.values()) <= 0.5:
            return more
    return None
