"""The share of wrong rows in a dataset, estimated from a sample that people labelled, also from strata."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.domain.trust.intervals import UNKNOWN, Interval, effective_n, wilson_of

LEAST_OF_STRATUM = 5
"""Strata with fewer decided rows are estimated together."""
SMOOTHING = 1.0
"""Weight of the overall share in a stratum's variance, in rows. Without it a stratum without wrong rows has none."""


class Label(StrEnum):
    """What a person said of a row. Only `correct` and `wrong` decide."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNSURE = "unsure"
    NOT_CHECKABLE = "not checkable"


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """A part of the dataset: its number of rows, and how many of its labelled rows have each label."""

    size: int
    correct: int = 0
    wrong: int = 0
    unsure: int = 0
    not_checkable: int = 0

    @property
    def labelled(self) -> int:
        """Rows with any label."""
        return self.correct + self.wrong + self.unsure + self.not_checkable


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The share of wrong rows among those that can be checked.

    `wrong` is its interval from `decided` rows. `if_correct` and `if_wrong` are the intervals if every unsure row were
    correct, or wrong.
    """

    wrong: Interval
    if_correct: Interval
    if_wrong: Interval
    decided: int
    unsure: int
    not_checkable: int

    @property
    def labelled(self) -> int:
        """Rows with any label."""
        return self.decided + self.unsure + self.not_checkable


def estimate(strata: Iterable[Stratum]) -> Estimate:
    """The estimate from all strata, each with the weight of its rows that can be checked.

    Raises `ValueError` if a stratum has more labelled rows than rows.
    """
    seen = list(strata)
    if any(s.labelled > s.size for s in seen):
        raise ValueError("A stratum has more labelled rows than rows.")
    return Estimate(
        wrong=_share([_Part(s.size, s.labelled, s.wrong, s.wrong + s.correct) for s in seen]),
        if_correct=_share([_Part(s.size, s.labelled, s.wrong, s.labelled - s.not_checkable) for s in seen]),
        if_wrong=_share([_Part(s.size, s.labelled, s.wrong + s.unsure, s.labelled - s.not_checkable) for s in seen]),
        decided=sum(s.correct + s.wrong for s in seen),
        unsure=sum(s.unsure for s in seen),
        not_checkable=sum(s.not_checkable for s in seen),
    )


@dataclass(frozen=True)
class _Part:
    """Rows of a stratum, how many were labelled, and `hits` among the `n` of them that count."""

    size: int
    labelled: int
    hits: int
    n: int

    @property
    def counting(self) -> float:
        """Rows of the stratum that would count, by the share of those that do."""
        return self.size * self.n / self.labelled if self.labelled else self.size


def _share(strata: Sequence[_Part]) -> Interval:
    parts = _merged(strata)
    n, rows = sum(part.n for part in parts), sum(part.counting for part in parts)
    if n == 0:
        return UNKNOWN
    share = sum(part.counting * part.hits / part.n for part in parts) / rows
    if share in (0.0, 1.0):
        return wilson_of(share, effective_n(n, rows))
    variance = sum((part.counting / rows) ** 2 * _spread(part, share) / part.n for part in parts)
    return wilson_of(share, effective_n(n, rows) / n * share * (1 - share) / variance)


def _spread(part: _Part, share: float) -> float:
    own = (part.hits + SMOOTHING * share) / (part.n + SMOOTHING)
    return own * (1 - own)


def _merged(strata: Sequence[_Part]) -> list[_Part]:
    """Small strata become one. If that is small too, it joins the largest."""
    parts = [part for part in strata if part.n >= LEAST_OF_STRATUM]
    small = [part for part in strata if part.n < LEAST_OF_STRATUM]
    if not small:
        return parts
    rest = _together(small)
    if rest.n >= LEAST_OF_STRATUM or not parts:
        return [*parts, rest]
    parts.sort(key=lambda part: part.size)
    return [*parts[:-1], _together([parts[-1], rest])]


def _together(parts: Sequence[_Part]) -> _Part:
    return _Part(
        sum(p.size for p in parts), sum(p.labelled for p in parts), sum(p.hits for p in parts), sum(p.n for p in parts)
    )
