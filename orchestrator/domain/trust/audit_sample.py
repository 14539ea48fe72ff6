"""The order in which the rows of a dataset are audited. It is a function of a seed, so that people choose no row.

Every beginning of the order is a random sample with the strata in proportion. A larger sample begins with the smaller.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

SECOND_RATING_SHARE = 0.2
"""Share of the rows that a second person labels too."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One assistant turn of a dataset: its row (from 0), its place in the row, and its stratum."""

    row: int
    turn: int
    stratum: str


def fraction(seed: int, *words: object) -> float:
    """A number from 0 to below 1 that is a hash of the seed and the words."""
    text = ":".join(map(str, (seed, *words)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def first_units(units: Iterable[Unit], sizes: Mapping[str, int], seed: int, count: int) -> list[Unit]:
    """The first `count` units of the order. `sizes` has the number of units of each stratum.

    The units of a stratum are sorted by their hash. The i-th of n units has the place (i + start) / n, where `start` is
    the hash of the stratum's name. Memory grows with `count`, not with the number of units.
    """
    total = sum(sizes.values())
    # Each stratum can be ahead of its proportion by less than one unit.
    wanted = {name: min(size, math.ceil((count + len(sizes)) * size / total) + 1) for name, size in sizes.items()}
    least: dict[str, list[tuple[float, int, int]]] = {name: [] for name in sizes}
    for unit in units:
        heap = least[unit.stratum]
        item = (-fraction(seed, unit.row, unit.turn), -unit.row, -unit.turn)
        if len(heap) < wanted[unit.stratum]:
            heapq.heappush(heap, item)
        elif item > heap[0]:
            heapq.heapreplace(heap, item)
    placed: list[tuple[float, Unit]] = []
    for name, heap in least.items():
        start = fraction(seed, "stratum", name)
        for place, (_, row, turn) in enumerate(sorted(heap, reverse=True)):
            placed.append(((place + start) / sizes[name], Unit(-row, -turn, name)))
    placed.sort(key=lambda item: (item[0], item[1].stratum))
    return [unit for _, unit in placed[:count]]


def is_rated_twice(seed: int, row: int, turn: int) -> bool:
    """Whether a second person labels this unit too."""
    return fraction(seed, "second", row, turn) < SECOND_RATING_SHARE


def tercile_limits(lengths: Mapping[int, int]) -> tuple[int, int]:
    """The two lengths that divide units into thirds, as nearly as equal lengths allow.

    `lengths` has the number of units with each length, and at least one.
    """
    total, passed = sum(lengths.values()), 0
    found: list[int] = []
    for length in sorted(lengths):
        passed += lengths[length]
        while len(found) < 2 and 3 * passed >= (len(found) + 1) * total:
            found.append(length)
    return found[0], found[1]


def tercile(length: int, limits: Sequence[int]) -> str:
    """Name of the third in which this length is."""
    return ("short", "middle", "long")[bisect_left(limits, length)]
