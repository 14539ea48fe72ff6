"""Agreement of raters on nominal labels: Cohen's kappa for two, Krippendorff's alpha for any number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

LEAST_ALPHA = 0.4
"""Votes whose agreement is lower promote nothing."""


def cohen_kappa(pairs: Iterable[tuple[Hashable, Hashable]]) -> float | None:
    """Agreement of two raters beyond chance. 1 is perfect, 0 is chance. None without pairs or without variation."""
    seen = list(pairs)
    n = len(seen)
    if n == 0:
        return None
    first, second = Counter(a for a, _ in seen), Counter(b for _, b in seen)
    agreed = sum(a == b for a, b in seen) / n
    by_chance = sum(first[label] * second[label] for label in first) / (n * n)
    return None if by_chance == 1 else (agreed - by_chance) / (1 - by_chance)


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Agreement on units that each have the labels of any number of raters. Units with one label do not count.

    None without units that two people labelled, or if all labels are equal.
    """
    shared = [labels for labels in units if len(labels) > 1]
    totals: Counter[Hashable] = Counter(label for labels in shared for label in labels)
    n = sum(totals.values())
    observed = sum(_disagreements(Counter(labels)) / (len(labels) - 1) for labels in shared)
    expected = _disagreements(totals)
    return None if expected == 0 else 1 - (n - 1) * observed / expected


def _disagreements(counts: Counter[Hashable]) -> int:
    """Ordered pairs of different labels."""
    n = sum(counts.values())
    return n * n - sum(count * count for count in counts.values())
