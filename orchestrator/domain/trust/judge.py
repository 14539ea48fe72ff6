"""A judge model that compares two answers, each pair in both orders. It advises people and replaces no vote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.domain.trust.agreement import LEAST_ALPHA, cohen_kappa
from orchestrator.domain.trust.intervals import Interval, wilson
from orchestrator.domain.trust.sign_test import STANDARD, Comparison, Outcome, Quality, compare, sign_p

MAX_INCONSISTENT = 0.3
"""Share of pairs with two different verdicts above which a judge cannot be used."""
BIAS_P = 0.05
LEAST_SHARED = 50
"""Prompts that people and the judge must both have decided before the judge promotes anything."""


class Slot(StrEnum):
    """A judge's answer: the answer in the first or the second place is better, or neither."""

    FIRST = "first"
    SECOND = "second"
    TIE = "tie"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The verdicts on one prompt, with the adapter's answer first and with it second. None: the judge failed."""

    adapter_first: Slot | None
    adapter_second: Slot | None

    @property
    def failed(self) -> bool:
        """Whether a verdict is missing. Such a pair counts as a failure and for nothing else."""
        return self.adapter_first is None or self.adapter_second is None

    @property
    def is_consistent(self) -> bool:
        """Whether both verdicts name the same model, or both a tie."""
        return _model(self.adapter_first, Slot.FIRST) is _model(self.adapter_second, Slot.SECOND)

    @property
    def outcome(self) -> Outcome:
        """The model that both verdicts name, else a tie."""
        return _model(self.adapter_first, Slot.FIRST) if self.is_consistent else Outcome.TIE


def _model(verdict: Slot | None, adapter: Slot) -> Outcome:
    if verdict is None or verdict is Slot.TIE:
        return Outcome.TIE
    return Outcome.ADAPTER if verdict is adapter else Outcome.BASE


@dataclass(frozen=True, kw_only=True)
class Conduct:
    """How a judge behaved. `inconsistent` is the share of pairs with two different verdicts.

    `first` and `second` count the inconsistent pairs in which the same place won twice. `bias_p` is the p-value of
    their difference.
    """

    pairs: int
    failed: int
    inconsistent: Interval
    first: int
    second: int
    bias_p: float

    @property
    def is_biased(self) -> bool:
        """Whether the judge prefers a place."""
        return self.bias_p <= BIAS_P

    @property
    def is_usable(self) -> bool:
        """Whether enough of the verdicts are consistent."""
        return self.pairs > 0 and self.inconsistent.value <= MAX_INCONSISTENT


def conduct(judged: Iterable[Judged]) -> Conduct:
    """The judge's failures, inconsistency and bias for a place. Failures are counted and left out of the rest."""
    every = list(judged)
    seen = [pair for pair in every if not pair.failed]
    apart = [pair for pair in seen if not pair.is_consistent]
    first = sum(pair.adapter_first is pair.adapter_second is Slot.FIRST for pair in apart)
    second = sum(pair.adapter_first is pair.adapter_second is Slot.SECOND for pair in apart)
    return Conduct(
        pairs=len(seen),
        failed=len(every) - len(seen),
        inconsistent=wilson(len(apart), len(seen)),
        first=first,
        second=second,
        bias_p=sign_p(first, second),
    )


@dataclass(frozen=True, kw_only=True)
class PeopleAgreement:
    """Agreement of a judge with people on the prompts that both decided."""

    shared: int
    equal: Interval
    kappa: float | None

    @property
    def is_shown(self) -> bool:
        """Whether the judge may stand in for people on this task."""
        return self.shared >= LEAST_SHARED and self.kappa is not None and self.kappa >= LEAST_ALPHA


def agreement(shared: Sequence[tuple[Outcome, Outcome]]) -> PeopleAgreement:
    """From (judge, people) for each prompt that both decided, failures of the judge left out."""
    equal = sum(judge is people for judge, people in shared)
    return PeopleAgreement(shared=len(shared), equal=wilson(equal, len(shared)), kappa=cohen_kappa(shared))


class Advice(StrEnum):
    """What a judge alone may say."""

    PROMOTE = "promote"
    DO_NOT = "do not promote"
    ASK_PEOPLE = "ask people"


def advise(judged: Sequence[Judged], people: PeopleAgreement | None = None) -> tuple[Advice, Comparison]:
    """The judge's advice, with the comparison that it rests on.

    A judge without shown agreement with people never says "promote". One that cannot be used only says "ask people".
    """
    result = compare((pair.outcome for pair in judged if not pair.failed), STANDARD)
    behaved = conduct(judged)
    if not behaved.is_usable or behaved.is_biased or result.quality is Quality.OPEN:
        return Advice.ASK_PEOPLE, result
    if result.quality is Quality.WORSE:
        return Advice.DO_NOT, result
    return (Advice.PROMOTE if people is not None and people.is_shown else Advice.ASK_PEOPLE), result
