"""The verdict on an adapter: promote it, do not, or say that the evidence is not enough."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.domain.trust.agreement import LEAST_ALPHA
from orchestrator.domain.trust.audit_decision import Decision
from orchestrator.domain.trust.declared_gain import Gain
from orchestrator.domain.trust.intervals import Interval, paired_t
from orchestrator.domain.trust.judge import Advice
from orchestrator.domain.trust.sign_test import Comparison, Quality
from orchestrator.domain.trust.win_rates import MarginResult, NotWorse

WARN_NATS, VETO_NATS = 0.05, 0.20
"""Rise of the mean loss on general text, in nats per token."""
MAX_TRUNCATED = 0.1
"""Share of answers cut at the token limit, in either arm, above which there is no verdict."""
LEAST_PROMPTS = 30
"""Prompts that both arms must answer before there is a verdict."""


class Harm(StrEnum):
    """How much an adapter harms what the base model could do."""

    NONE = "none"
    WARNING = "warning"
    VETO = "veto"


@dataclass(frozen=True, kw_only=True)
class Forgetting:
    """The rise of the loss on general text with its interval, in nats per token, and what follows from it."""

    rise: Interval
    harm: Harm


def forgetting(base: Sequence[float], adapter: Sequence[float]) -> Forgetting:
    """Compare the losses of both arms on the same passages. Raises `ValueError` if they are not pairs.

    A rise counts if its interval is above zero. A warning also says that a rise with a veto cannot be excluded.
    """
    rise = paired_t([after - before for before, after in zip(base, adapter, strict=True)])
    if rise.low > 0 and rise.value >= VETO_NATS:
        return Forgetting(rise=rise, harm=Harm.VETO)
    if (rise.low > 0 and rise.value >= WARN_NATS) or rise.high >= VETO_NATS:
        return Forgetting(rise=rise, harm=Harm.WARNING)
    return Forgetting(rise=rise, harm=Harm.NONE)


class Recommendation(StrEnum):
    """The answer to "is the adapter to be promoted?"."""

    PROMOTE = "promote"
    DO_NOT = "do not promote"
    NOT_ENOUGH = "not enough evidence"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that a verdict rests on.

    `votes` compares by people. `judge` is the advice of judge models (None: none, or people are comparing). It counts
    only where people have not decided. `margin` is the test of a margin that was declared before the first vote (None:
    not declared), `gain` that of a gain elsewhere which was declared with it (None: not declared). `alpha` is the
    agreement of several raters (None: not known). `vetoes` are the harms that were found, in words. Truncation is the
    share of answers cut at the token limit. `audit` is None without an audit with a limit. `prompts` were answered by
    both arms.
    """

    votes: Comparison | None = None
    judge: Advice | None = None
    margin: MarginResult | None = None
    gain: Gain | None = None
    alpha: float | None = None
    vetoes: tuple[str, ...] = ()
    truncated_base: float = 0.0
    truncated_adapter: float = 0.0
    prompts: int = LEAST_PROMPTS
    audit: Decision | None = None
    provenance_is_whole: bool = False


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer with its reasons. `more` is the number of ratings that would probably help (None: none would)."""

    answer: Recommendation
    reasons: tuple[str, ...]
    more: int | None = None


def judge_adapter(evidence: Evidence) -> Verdict:
    """Decide. Similarity to the training data is not part of the evidence."""
    objections = tuple(_objections(evidence))
    if objections:
        return Verdict(answer=Recommendation.DO_NOT, reasons=objections)
    gaps = tuple(_gaps(evidence))
    if gaps:
        return Verdict(answer=Recommendation.NOT_ENOUGH, reasons=gaps, more=_ratings_to_come(evidence))
    return Verdict(answer=Recommendation.PROMOTE, reasons=(_shown(evidence),))


def _shown(evidence: Evidence) -> str:
    if _people_say(evidence, Quality.BETTER):
        return "People prefer the adapter to its base."
    if evidence.gain is not None and _is_not_worse(evidence):
        return f"{_NOT_WORSE}, and the declared gain is shown: {evidence.gain.words}."
    return _JUDGE_PREFERS


_NOT_WORSE = "The adapter is not worse than its base by more than the declared margin"
_JUDGE_PREFERS = "A judge model prefers the adapter to its base, and it agrees with people on these prompts."


def _objections(evidence: Evidence) -> Iterator[str]:
    if _people_say(evidence, Quality.WORSE):
        yield "People prefer the base model to the adapter."
    elif evidence.judge is Advice.DO_NOT and not _people_say(evidence, Quality.BETTER):
        yield "A judge model prefers the base model to the adapter, and people have not decided."
    yield from evidence.vetoes
    if evidence.audit is Decision.FAIL:
        yield "The audit found more wrong rows in the training data than allowed."


def _gaps(evidence: Evidence) -> Iterator[str]:
    if not evidence.prompts:
        yield "The adapter is not evaluated yet."
    elif not (_is_better(evidence) or _is_not_worse(evidence)):
        yield _quality_gap(evidence)
    if 0 < evidence.prompts < LEAST_PROMPTS:
        prompts = "1 prompt" if evidence.prompts == 1 else f"{evidence.prompts} prompts"
        yield f"The evaluation has {prompts}, and a verdict needs at least {LEAST_PROMPTS}."
    if evidence.alpha is not None and evidence.alpha < LEAST_ALPHA:
        yield f"Raters disagree too much (alpha {evidence.alpha:.2f}, at least {LEAST_ALPHA} is needed)."
    if max(evidence.truncated_base, evidence.truncated_adapter) > MAX_TRUNCATED:
        yield f"More than {MAX_TRUNCATED:.0%} of the answers were cut at the token limit. Evaluate with a higher one."
    if not evidence.provenance_is_whole:
        yield "Not every file and setting behind this adapter is recorded."


def _quality_gap(evidence: Evidence) -> str:
    if evidence.margin is not None and evidence.margin.result is NotWorse.SHOWN:
        if evidence.gain is None:
            return f"{_NOT_WORSE}, but no gain elsewhere was declared with it."
        return f"{_NOT_WORSE}, but the declared gain is not shown: {evidence.gain.words}."
    if evidence.votes is None:
        return "There are no votes on the answers yet."
    if evidence.votes.more is None:
        return "The comparison has ended, and its votes show no difference."
    return "The votes do not decide yet."


def _people_say(evidence: Evidence, quality: Quality) -> bool:
    return evidence.votes is not None and evidence.votes.quality is quality


def _is_better(evidence: Evidence) -> bool:
    return _people_say(evidence, Quality.BETTER) or evidence.judge is Advice.PROMOTE


def _is_not_worse(evidence: Evidence) -> bool:
    return _gains(evidence) and evidence.margin is not None and evidence.margin.result is NotWorse.SHOWN


def _gains(evidence: Evidence) -> bool:
    return evidence.gain is not None and evidence.gain.is_shown


def _ratings_to_come(evidence: Evidence) -> int | None:
    if _is_better(evidence) or _is_not_worse(evidence):
        return None
    forecasts = [evidence.votes.more] if evidence.votes is not None else []
    if evidence.margin is not None and _gains(evidence):
        forecasts.append(evidence.margin.more or None)
    known = [more for more in forecasts if more]
    return min(known) if known else None
