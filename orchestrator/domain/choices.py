"""Choices, limits and words of the command line. They are apart, because `trainhop --help` imports them."""

from __future__ import annotations

from enum import StrEnum

MAX_BUDGET = 100_000_000
"""Tokens that a judgement may use at most."""

AGAINST = "promoted against the verdict"


class StrataKind(StrEnum):
    """What the strata are made of, besides thirds by length: a row's source, its language, or nothing."""

    SOURCE = "source"
    LANGUAGE = "language"
    LENGTH = "length"


class PlanName(StrEnum):
    """The plans of the sign test that a comparison may have."""

    STANDARD = "standard"
    SMALL = "small"


class GainKind(StrEnum):
    """Where a gain may be declared: on the tasks that a program checks."""

    TASKS = "tasks"


def percent(share: float) -> str:
    """A share in percent, with one decimal where it is below 1 or above 99."""
    value = 100 * share
    return f"{value:.1f}" if 0 < value < 1 or 99 < value < 100 else f"{value:.0f}"
