"""Win rates beside the sign test: among pairs of answers with similar lengths, and "not worse by a margin"."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist

from orchestrator.domain.trust.intervals import Interval, t_quantile, wilson
from orchestrator.domain.trust.sign_test import Outcome

MATCHED_WITHIN = 0.2
"""Answers are of similar length if the longer one has at most this share more."""
CONFIDENCE, POWER = 0.975, 0.8
SCORES = {Outcome.ADAPTER: 1.0, Outcome.TIE: 0.5, Outcome.BASE: 0.0}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The outcome of a prompt, and the lengths of both answers in the same unit."""

    outcome: Outcome
    adapter_length: int
    base_length: int


@dataclass(frozen=True, kw_only=True)
class WinRate:
    """The adapter's share of decisive prompts with its interval, and the number of prompts."""

    share: Interval
    decisive: int
    ties: int


def win_rate(outcomes: Iterable[Outcome]) -> WinRate:
    """The adapter's share of the decisive prompts."""
    seen = list(outcomes)
    wins, losses = seen.count(Outcome.ADAPTER), seen.count(Outcome.BASE)
    return WinRate(share=wilson(wins, wins + losses), decisive=wins + losses, ties=len(seen) - wins - losses)


def length_matched(pairs: Iterable[Pair], within: float = MATCHED_WITHIN) -> WinRate:
    """The win rate among pairs of similar length: what is left of it if people did not just prefer longer answers."""
    return win_rate(pair.outcome for pair in pairs if _is_similar(pair.adapter_length, pair.base_length, within))


def _is_similar(one: int, other: int, within: float) -> bool:
    return max(one, other) <= (1 + within) * min(one, other)


class NotWorse(StrEnum):
    """Whether the adapter is shown to be not worse by more than the margin."""

    SHOWN = "shown"
    NOT_SHOWN = "not shown"
    OPEN = "open"


@dataclass(frozen=True, kw_only=True)
class MarginResult:
    """The result with the adapter's mean score (a tie is half a win), and the prompts still to be rated."""

    result: NotWorse
    score: Interval
    more: int = 0


def prompts_for_margin(margin: float, ties: float = 0.0) -> int:
    """Prompts that show "not worse by more than the margin" with 80 % power if the models are equal.

    `margin` is in shares of the score, `ties` the share of ties that is expected.
    """
    if not 0 < margin < 0.5 or not 0 <= ties < 1:
        raise ValueError("The margin must be between 0 and 0.5, and the share of ties from 0 to below 1.")
    z = NormalDist().inv_cdf(CONFIDENCE) + NormalDist().inv_cdf(POWER)
    return math.ceil(z * z * 0.25 * (1 - ties) / (margin * margin))


def not_worse(outcomes: Iterable[Outcome], margin: float, planned: int) -> MarginResult:
    """Test once, after the `planned` number of prompts. Margin and number must be fixed before the first vote.

    A one-sided error of 2.5 %. Further prompts are left out, because a second look would raise the error.
    """
    scores = [SCORES[outcome] for outcome in outcomes][:planned]
    if planned < 2 or not 0 < margin < 0.5:
        raise ValueError("At least two prompts must be planned, and the margin must be between 0 and 0.5.")
    if len(scores) < planned:
        share = Interval(value=statistics.fmean(scores) if scores else math.nan, low=0.0, high=1.0)
        return MarginResult(result=NotWorse.OPEN, score=share, more=planned - len(scores))
    mean = statistics.fmean(scores)
    half = t_quantile(CONFIDENCE, planned - 1) * statistics.stdev(scores) / math.sqrt(planned)
    score = Interval(value=mean, low=mean - half, high=mean + half)
    return MarginResult(result=NotWorse.SHOWN if score.low > 0.5 - margin else NotWorse.NOT_SHOWN, score=score)
