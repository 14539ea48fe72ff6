"""The units of an evaluation: fixed batches in a fixed order, as a function of the job alone.

A greedy answer depends on the batch that it is generated in. So a batch has the same prompts on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

PASSAGES, PASSAGES_AT_ONCE = 100, 25
"""Passages of the package, and passages of one unit."""
FIXED, FIXED_AT_ONCE, FIXED_TOKENS = 60, 15, 128
"""Fixed prompts of the package, those of one unit, and tokens of an answer to one at most."""
ROWS_AT_ONCE = 25
"""Rows of one unit whose own answers are measured."""
ITEMS_AT_ONCE = 8
"""Items of one unit of a benchmark."""
MAX_AT_ONCE = 8
TOKENS_AT_ONCE = 8_192
"""Maximum tokens of one batch, prompts and answers together, unless one prompt alone has more."""


class Arm(StrEnum):
    """Which model answers: the base model, or the base model with the adapter. For a judge, which one is first."""

    BASE = "base"
    ADAPTER = "adapter"


class Measure(StrEnum):
    """What a unit is about.

    Answers to prompts, the loss on passages, the loss on the rows' own answers, answers to the fixed prompts, answers
    to the tasks of the user, items of benchmarks, or what a judge model says of both answers to a prompt.
    """

    PROMPTS = "prompts"
    PASSAGES = "passages"
    OWN_ANSWERS = "own_answers"
    FIXED = "fixed"
    TASKS = "tasks"
    BENCHMARKS = "benchmarks"
    JUDGE = "judge"


@dataclass(frozen=True, slots=True)
class Unit:
    """One batch of one arm: the prompts, passages, rows, tasks or items with the numbers `begin` to `end` (exclusive).

    The items of all benchmarks have one count, and a unit has items of one benchmark.
    """

    arm: Arm
    measure: Measure
    begin: int
    end: int


def prompts_at_once(sequence_len: int, max_new_tokens: int) -> int:
    """Prompts of one batch."""
    return max(1, min(MAX_AT_ONCE, TOKENS_AT_ONCE // (sequence_len + max_new_tokens)))


def units(
    prompts: int,
    at_once: int,
    *,
    tasks: int = 0,
    measures: int | None = None,
    benchmarks: Sequence[int] = (),
    judged_at_once: int = 0,
) -> tuple[Unit, ...]:
    """All units of an evaluation with at most this many prompts, in their order.

    `measures` is that of the job, `benchmarks` are the numbers of items of each. A judge model, which needs the answers
    of all others, compares those to `judged_at_once` prompts (0: there is none). Parts that came later follow, so the
    units of an older job keep their places.
    """
    found = [*_batches(Measure.PROMPTS, prompts, at_once), *_batches(Measure.PASSAGES, PASSAGES, PASSAGES_AT_ONCE)]
    if measures is not None:
        found += _batches(Measure.OWN_ANSWERS, prompts, ROWS_AT_ONCE)
        found += _batches(Measure.FIXED, FIXED, FIXED_AT_ONCE)
    found += _batches(Measure.TASKS, tasks, at_once)
    first = 0
    for items in benchmarks:
        found += _batches(Measure.BENCHMARKS, first + items, ITEMS_AT_ONCE, first)
        first += items
    if judged_at_once:
        found += _batches(Measure.JUDGE, prompts, judged_at_once)
    return tuple(found)


def _batches(measure: Measure, end: int, at_once: int, first: int = 0) -> list[Unit]:
    begins = range(first, end, at_once)
    return [Unit(arm, measure, begin, min(end, begin + at_once)) for begin in begins for arm in Arm]
