"""A gain elsewhere: what an adapter that is not worse by more than a margin has to be better at.

The tasks are scored before people vote. So there is one gain to declare, on all tasks of the evaluation: whoever could
choose among several would choose the one that happened to be largest. The error of its test is the same whenever it
is declared.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.domain.trust.sign_test import sign_p

ALPHA = 0.05
"""Limit of the two-sided p-value. An adapter that solves no more tasks is said to with at most half of it."""
FALSE_GAIN = ALPHA / 2


@dataclass(frozen=True, kw_only=True)
class SolvedTasks:
    """What both models solved, each of them alone `only_base` and `only_adapter`.

    `are_cut`: too many answers of one of them were cut at the token limit. `are_trained_on`: some tasks are training
    rows.
    """

    tasks: int
    base: int
    adapter: int
    only_base: int
    only_adapter: int
    are_cut: bool = False
    are_trained_on: bool = False


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Whether a declared gain is shown, in words without a full stop."""

    is_shown: bool
    words: str


def task_gain(found: SolvedTasks | None) -> Gain:
    """The gain on tasks by McNemar's exact test. None: no task was scored."""
    if found is None:
        return Gain(is_shown=False, words="no task was scored")
    if found.are_trained_on:
        return Gain(is_shown=False, words="some of the tasks are training rows")
    if found.are_cut:
        return Gain(is_shown=False, words="too many answers to the tasks were cut at the token limit")
    p = sign_p(found.only_adapter, found.only_base)
    words = f"the adapter solves {found.adapter} of {found.tasks} tasks, and its base {found.base} (p {p:.3f})"
    return Gain(is_shown=found.only_adapter > found.only_base and p < ALPHA, words=words)
