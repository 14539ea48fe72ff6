"""The units of an evaluation: fixed batches in a fixed order, as a function of the job alone.

A greedy answer depends on the batch that it is generated in. So a batch has the same prompts on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

PASSAGES, PASSAGES_AT_ONCE = 100, 25
"""Passages of the package, and passages of one unit."""
MAX_AT_ONCE = 8
TOKENS_AT_ONCE = 8_192
"""Maximum tokens of one batch, prompts and answers together, unless one prompt alone has more."""


class Arm(StrEnum):
    """Which model answers: the base model, or the base model with the adapter."""

    BASE = "base"
    ADAPTER = "adapter"


@dataclass(frozen=True, slots=True)
class Unit:
    """One batch of one arm: the prompts or passages with the numbers `begin` to `end` (exclusive)."""

    arm: Arm
    of_passages: bool
    begin: int
    end: int


def prompts_at_once(sequence_len: int, max_new_tokens: int) -> int:
    """Prompts of one batch."""
    return max(1, min(MAX_AT_ONCE, TOKENS_AT_ONCE // (sequence_len + max_new_tokens)))


def units(prompts: int, at_once: int) -> tuple[Unit, ...]:
    """All units of an evaluation with at most this many prompts, in their order."""
    return (*_batches(prompts, at_once, of_passages=False), *_batches(PASSAGES, PASSAGES_AT_ONCE, of_passages=True))


def _batches(count: int, at_once: int, *, of_passages: bool) -> list[Unit]:
    begins = range(0, count, at_once)
    return [Unit(arm, of_passages, begin, min(count, begin + at_once)) for begin in begins for arm in Arm]
