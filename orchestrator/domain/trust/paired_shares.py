"""Compares two shares of the same items, for example the tasks that each of two models solves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.domain.trust.intervals import Interval, wilson
from orchestrator.domain.trust.sign_test import sign_p


@dataclass(frozen=True, kw_only=True)
class PairedShares:
    """Items that both, one or none of two models pass, and what follows.

    `difference` is the share of the adapter less that of the base model, with a 95 % interval. `p` is the exact
    two-sided p-value of McNemar's test, which looks only at the items that one of the two passes.
    """

    both: int
    only_base: int
    only_adapter: int
    none: int
    difference: Interval
    p: float

    @property
    def items(self) -> int:
        """All items."""
        return self.both + self.only_base + self.only_adapter + self.none


def compare_shares(base: Sequence[bool], adapter: Sequence[bool]) -> PairedShares:
    """Compare two models on the same items. Raises `ValueError` if there is none, or if they are not pairs."""
    pairs = list(zip(base, adapter, strict=True))
    if not pairs:
        raise ValueError("A comparison needs at least one item.")
    both, only_base = pairs.count((True, True)), pairs.count((True, False))
    only_adapter, none = pairs.count((False, True)), pairs.count((False, False))
    return PairedShares(
        both=both,
        only_base=only_base,
        only_adapter=only_adapter,
        none=none,
        difference=difference(both, only_adapter, only_base, none),
        p=sign_p(only_adapter, only_base),
    )


def difference(both: int, only_first: int, only_second: int, none: int) -> Interval:
    """The first share less the second one, by Newcombe's hybrid score method for pairs (1998, his method 10)."""
    n = both + only_first + only_second + none
    first, second = wilson(both + only_first, n), wilson(both + only_second, n)
    correlation = _correlation(both, only_first, only_second, none)

    def distance(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * correlation * one * other + other * other))

    value = first.value - second.value
    return Interval(
        value=value,
        low=max(-1.0, value - distance(first.value - first.low, second.high - second.value)),
        high=min(1.0, value + distance(first.high - first.value, second.value - second.low)),
    )


def _correlation(both: int, only_first: int, only_second: int, none: int) -> float:
    """The phi coefficient, with Newcombe's correction for continuity where it is positive."""
    margins = (both + only_first) * (only_second + none) * (both + only_second) * (only_first + none)
    if margins == 0:
        return 0.0
    product = both * none - only_first * only_second
    if product > 0:
        product = max(product - (both + only_first + only_second + none) / 2, 0.0)
    return product / math.sqrt(margins)
