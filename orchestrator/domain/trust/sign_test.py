"""Compares two models by people's votes: an exact group-sequential sign test over prompts.

A prompt is decisive if one model wins it. The test looks at the votes only when 20, 40, 80 and 160 prompts are
decisive. Models that are equal get a claim with a probability of 2.4 % in each direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache


class Outcome(StrEnum):
    """What people said of one prompt, or one person of it."""

    ADAPTER = "adapter"
    BASE = "base"
    TIE = "tie"


class Quality(StrEnum):
    """The result of the comparison, of the adapter to its base."""

    BETTER = "better"
    WORSE = "worse"
    OPEN = "open"


@dataclass(frozen=True)
class Plan:
    """Decisive prompts at each look, and the wins that either model needs there."""

    looks: tuple[int, ...]
    bounds: tuple[int, ...]

    def __post_init__(self) -> None:
        increasing = all(a < b for a, b in zip(self.looks, self.looks[1:], strict=False))
        if len(self.looks) != len(self.bounds) or not self.looks or not increasing:
            raise ValueError("A plan needs increasing looks with one bound each.")
        if any(not look < 2 * bound <= 2 * look + 1 for look, bound in zip(self.looks, self.bounds, strict=True)):
            raise ValueError("A bound must be more than half of its look, and at most the look.")


STANDARD = Plan((20, 40, 80, 160), (18, 29, 51, 94))
SMALL = Plan((16, 32, 64), (15, 24, 41))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The result so far. `more` is the forecast of prompts still to be rated (None: the plan has ended).

    `wins` and `losses` are the decisive prompts that the result rests on: those of the last look, or of all so far.
    """

    quality: Quality
    wins: int
    losses: int
    ties: int
    more: int | None = 0


def compare(outcomes: Iterable[Outcome], plan: Plan = STANDARD) -> Comparison:
    """Apply the test to prompts in the order in which they were decided."""
    wins = losses = ties = 0
    bounds = dict(zip(plan.looks, plan.bounds, strict=True))
    for outcome in outcomes:
        if outcome is Outcome.TIE:
            ties += 1
            continue
        wins, losses = wins + (outcome is Outcome.ADAPTER), losses + (outcome is Outcome.BASE)
        if max(wins, losses) >= bounds.get(wins + losses, math.inf):
            quality = Quality.BETTER if wins > losses else Quality.WORSE
            return Comparison(quality=quality, wins=wins, losses=losses, ties=ties)
        if wins + losses == plan.looks[-1]:
            return Comparison(quality=Quality.OPEN, wins=wins, losses=losses, ties=ties, more=None)
    decisive = wins + losses
    share = (decisive + 0.5) / (decisive + ties + 1) if ties else 1.0
    more = math.ceil(_decisive_to_come(wins, losses, plan) / share)
    return Comparison(quality=Quality.OPEN, wins=wins, losses=losses, ties=ties, more=more)


@dataclass(frozen=True, kw_only=True)
class ErrorRates:
    """Probabilities of each claim and of a claim at each look, and the mean number of decisive prompts."""

    better: float
    worse: float
    at_look: tuple[float, ...]
    mean_decisive: float


def error_rates(share: float, plan: Plan = STANDARD) -> ErrorRates:
    """The exact rates if the adapter wins each decisive prompt with the probability `share`."""
    chances: dict[int, float] = {0: 1.0}
    at_look: list[float] = []
    before, better, worse, mean = 0, 0.0, 0.0, 0.0
    for look, bound in zip(plan.looks, plan.bounds, strict=True):
        mean += sum(chances.values()) * (look - before)
        for _ in range(before, look):
            chances = _after_one(chances, lambda _: share)
        won = sum(chance for wins, chance in chances.items() if wins >= bound)
        lost = sum(chance for wins, chance in chances.items() if look - wins >= bound)
        better, worse, before = better + won, worse + lost, look
        at_look.append(won + lost)
        chances = {wins: chance for wins, chance in chances.items() if max(wins, look - wins) < bound}
    return ErrorRates(better=better, worse=worse, at_look=tuple(at_look), mean_decisive=mean)


def _after_one(chances: Mapping[int, float], share: Callable[[int], float]) -> dict[int, float]:
    """Chances of the wins after one more decisive prompt, which is a win with the probability `share(wins)`."""
    following: dict[int, float] = {}
    for wins, chance in chances.items():
        further = chance * share(wins)
        following[wins + 1] = following.get(wins + 1, 0.0) + further
        following[wins] = following.get(wins, 0.0) + chance - further
    return following


@lru_cache(maxsize=1024)
def _decisive_to_come(wins: int, losses: int, plan: Plan) -> int:
    """Median of the decisive prompts until a claim or the plan's end.

    Predicted from those seen: the next one is a win with the probability (wins + .5) / (decisive + 1).
    """
    chances: dict[int, float] = {wins: 1.0}
    seen, ended = wins + losses, 0.0
    for look, bound in zip(plan.looks, plan.bounds, strict=True):
        if look <= seen:
            continue
        for size in range(seen, look):
            chances = _after_one(chances, lambda won, size=size: (won + 0.5) / (size + 1))
        ended += sum(chance for won, chance in chances.items() if max(won, look - won) >= bound)
        if ended >= 0.5:
            return look - wins - losses
        chances = {won: chance for won, chance in chances.items() if max(won, look - won) < bound}
        seen = look
    return plan.looks[-1] - wins - losses


def majority(votes: Sequence[Outcome]) -> Outcome:
    """The outcome of a prompt: the most frequent vote, or a tie if there is no single one. Needs at least one vote."""
    if not votes:
        raise ValueError("A prompt without votes has no majority.")
    counts = {outcome: sum(vote is outcome for vote in votes) for outcome in Outcome}
    most = [outcome for outcome, count in counts.items() if count == max(counts.values())]
    return most[0] if len(most) == 1 else Outcome.TIE


def sign_p(wins: int, losses: int) -> float:
    """Exact two-sided p-value of a sign test with a fixed number of decisive pairs."""
    n, most = wins + losses, max(wins, losses)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(most, n + 1)) / 2**n)
