"""Counting the votes of a blind comparison: sides, order, which prompts are decided, and the result. Pure functions.

A prompt is decided once it has all votes that it needs: two for a fifth of the prompts, else one. Its outcome is the
majority of these, and later votes on it do not change it. So the sign test sees prompts in an order that only grows.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.domain.comparisons import BlindComparison, Choice, Ending, PlanName, Vote
from orchestrator.domain.evaluations import Arm
from orchestrator.domain.trust.agreement import LEAST_ALPHA, cohen_kappa, krippendorff_alpha
from orchestrator.domain.trust.audit_sample import SECOND_RATING_SHARE
from orchestrator.domain.trust.sign_test import SMALL, STANDARD, Comparison, Outcome, Plan, Quality, compare, majority
from orchestrator.domain.trust.win_rates import (
    MarginResult,
    NotWorse,
    Pair,
    WinRate,
    length_matched,
    not_worse,
    prompts_for_margin,
    win_rate,
)

PLANS: dict[PlanName, Plan] = {PlanName.STANDARD: STANDARD, PlanName.SMALL: SMALL}
ACTIVE_S = 600.0
"""A rater who voted in this time gets other prompts than raters who vote at the same time."""
MARGIN_PROMPTS = 30
"""A margin needs at least so many prompts, because its test assumes that a mean score is nearly normal."""


def _digest(key: str, *words: object) -> bytes:
    return hmac.digest(key.encode(), ":".join(map(str, words)).encode(), "sha256")


def first_arm(key: str, number: int, rater_id: str) -> Arm:
    """Whose answer this rater sees as number 1."""
    return Arm.BASE if _digest(key, "side", number, rater_id)[0] & 1 else Arm.ADAPTER


def screen_name(key: str, number: int, rater_id: str) -> str:
    """A name of the prompt for one rater, which tells nothing about it."""
    return _digest(key, "screen", number, rater_id).hex()[:32]


def _fraction(key: str, *words: object) -> float:
    return int.from_bytes(_digest(key, *words)[:8], "big") / 2**64


def order(comparison: BlindComparison) -> list[int]:
    """All prompts in the order of the comparison, also those with identical answers."""
    return sorted(range(comparison.prompts), key=lambda number: _digest(comparison.key, "order", number))


def asked(comparison: BlindComparison) -> list[int]:
    """The prompts that raters see, in their order."""
    identical = set(comparison.identical)
    return [number for number in order(comparison) if number not in identical]


def votes_needed(comparison: BlindComparison, number: int) -> int:
    """How many raters a prompt needs."""
    return 2 if _fraction(comparison.key, "second", number) < SECOND_RATING_SHARE else 1


def outcome_of(key: str, vote: Vote) -> Outcome:
    """What a vote means, which depends on the sides that its rater saw."""
    if vote.choice is Choice.TIE:
        return Outcome.TIE
    first = first_arm(key, vote.number, vote.rater_id)
    return Outcome.ADAPTER if (first is Arm.ADAPTER) == (vote.choice is Choice.FIRST) else Outcome.BASE


@dataclass(frozen=True)
class Count:
    """The votes of a comparison. `given` has the outcomes of each prompt's votes, oldest first.

    `decided` has the outcomes of the decided prompts in the order of their decisions.
    """

    given: dict[int, list[Outcome]] = field(default_factory=dict[int, list[Outcome]])
    decided: dict[int, Outcome] = field(default_factory=dict[int, Outcome])


def count(comparison: BlindComparison, votes: Iterable[Vote]) -> Count:
    """Count votes, which must be in the order of their times."""
    found = Count()
    for vote in votes:
        given = found.given.setdefault(vote.number, [])
        given.append(outcome_of(comparison.key, vote))
        if len(given) == votes_needed(comparison, vote.number):
            found.decided[vote.number] = majority(given)
    return found


def tested(comparison: BlindComparison, counted: Count) -> Comparison:
    """The sign test so far."""
    return compare(counted.decided.values(), PLANS[comparison.plan])


def margin_test(comparison: BlindComparison, counted: Count) -> MarginResult | None:
    """The test of the declared margin, or None without one. Prompts with identical answers are ties."""
    if comparison.margin is None:
        return None
    planned = order(comparison)[: comparison.margin_prompts]
    known = counted.decided | dict.fromkeys(comparison.identical, Outcome.TIE)
    scores = [known[number] for number in planned if number in known]
    return not_worse(scores, comparison.margin, comparison.margin_prompts)


def planned_prompts(margin: float | None, prompts: int) -> int:
    """The number of prompts after which a margin is tested, out of those that there are. 0 without a margin."""
    return 0 if margin is None else min(prompts, prompts_for_margin(margin))


def ending(comparison: BlindComparison, counted: Count) -> Ending | None:
    """Why the comparison ends now, or None while more votes can change its result."""
    test, margin = tested(comparison, counted), margin_test(comparison, counted)
    if test.quality is not Quality.OPEN:
        return Ending.DECIDED
    if test.more is None and (margin is None or margin.result is not NotWorse.OPEN):
        return Ending.PLAN_ENDED
    return Ending.ALL_RATED if len(counted.decided) == len(asked(comparison)) else None


def ratings_to_come(comparison: BlindComparison, counted: Count) -> int:
    """About how many more ratings it takes until the test decides or there are no more prompts.

    While a margin is not tested, at least as many as its prompts need.
    """
    missing = {number: _missing(comparison, counted, number) for number in asked(comparison)}
    waiting = [ratings for ratings in missing.values() if ratings]
    for_test = sum(waiting[: tested(comparison, counted).more or 0])
    planned = order(comparison)[: comparison.margin_prompts]
    return max(for_test, sum(missing.get(number, 0) for number in planned))


def _missing(comparison: BlindComparison, counted: Count, number: int) -> int:
    return max(0, votes_needed(comparison, number) - len(counted.given.get(number, ())))


def next_number(comparison: BlindComparison, votes: Sequence[Vote], rater_id: str, now: float) -> int | None:
    """The prompt that a rater sees next, or None if no prompt needs a vote of theirs.

    First the prompts that need a second rater and have one. Then the first one without a vote. Raters who vote at the
    same time take turns in the order.
    """
    voters: dict[int, set[str]] = {}
    for vote in votes:
        voters.setdefault(vote.number, set()).add(vote.rater_id)
    free: list[tuple[int, int]] = []
    for place, number in enumerate(asked(comparison)):
        seen_by = voters.get(number, set())
        if not seen_by:
            free.append((place, number))
        elif rater_id not in seen_by and len(seen_by) < votes_needed(comparison, number):
            return number
    active = sorted({rater_id} | {vote.rater_id for vote in votes if vote.at > now - ACTIVE_S})
    own = [number for place, number in free if place % len(active) == active.index(rater_id)]
    return (own or [number for _, number in free] or [None])[0]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement of raters on the prompts that several rated. None if there is no variation to measure it by.

    `kappa` compares the first two votes of each of these prompts.
    """

    prompts: int
    equal: int
    kappa: float | None
    alpha: float | None

    @property
    def is_too_low(self) -> bool:
        """Whether the votes promote nothing because raters disagree."""
        return self.alpha is not None and self.alpha < LEAST_ALPHA


def agreement(counted: Count) -> Agreement:
    """How much raters agree. It tells nothing about which model they prefer."""
    shared = [given for given in counted.given.values() if len(given) > 1]
    return Agreement(
        prompts=len(shared),
        equal=sum(len(set(given)) == 1 for given in shared),
        kappa=cohen_kappa([(given[0], given[1]) for given in shared]),
        alpha=krippendorff_alpha(shared),
    )


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a closed comparison. `all_prompts` is the adapter's share of the decisive prompts.

    `similar_length` is the same among prompts whose answers have a similar length.
    """

    test: Comparison
    margin: MarginResult | None
    all_prompts: WinRate
    similar_length: WinRate
    agreement: Agreement
    words: str


def result(comparison: BlindComparison, counted: Count, lengths: Mapping[int, tuple[int, int]]) -> Result:
    """The result. `lengths` has the tokens of the base's and the adapter's answer to each prompt."""
    outcomes = counted.decided | dict.fromkeys(comparison.identical, Outcome.TIE)
    pairs = [
        Pair(outcome=outcome, base_length=lengths[number][0], adapter_length=lengths[number][1])
        for number, outcome in outcomes.items()
    ]
    test, agreed, rate = tested(comparison, counted), agreement(counted), win_rate(outcomes.values())
    margin = margin_test(comparison, counted)
    return Result(
        test=test,
        margin=margin,
        all_prompts=rate,
        similar_length=length_matched(pairs),
        agreement=agreed,
        words=_in_words(comparison, test, margin, rate, agreed),
    )


def _in_words(
    comparison: BlindComparison, test: Comparison, margin: MarginResult | None, rate: WinRate, agreed: Agreement
) -> str:
    sentence = {
        Quality.BETTER: "People prefer the adapter to its base model",
        Quality.WORSE: "People prefer the base model to the adapter",
        Quality.OPEN: "Not enough evidence that one model is better",
    }[test.quality]
    share = rate.share
    wins = round(share.value * rate.decisive) if not math.isnan(share.value) else 0
    words = [f"{sentence}: the adapter won {wins} of {rate.decisive} decisive prompts, and {rate.ties} were ties."]
    if margin is not None and comparison.margin is not None:
        words.append(f"Not worse by more than {comparison.margin:.0%}: {margin.result}.")
    if agreed.is_too_low:
        words.append(f"Raters disagree too much (alpha {agreed.alpha:.2f}, at least {LEAST_ALPHA} is needed).")
    return " ".join(words)
