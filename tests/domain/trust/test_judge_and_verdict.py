"""A judge model's conduct and advice, and the rule for the verdict on an adapter."""

from dataclasses import replace

import pytest

from orchestrator.domain.trust.audit_decision import Decision
from orchestrator.domain.trust.declared_gain import Gain
from orchestrator.domain.trust.intervals import Interval
from orchestrator.domain.trust.judge import Advice, Judged, Slot, advise, agreement, conduct
from orchestrator.domain.trust.sign_test import Comparison, Outcome, Quality, compare
from orchestrator.domain.trust.verdict import Evidence, Harm, Recommendation, forgetting, judge_adapter
from orchestrator.domain.trust.win_rates import MarginResult, NotWorse

ADAPTER = Judged(adapter_first=Slot.FIRST, adapter_second=Slot.SECOND)
BASE = Judged(adapter_first=Slot.SECOND, adapter_second=Slot.FIRST)
ALWAYS_FIRST = Judged(adapter_first=Slot.FIRST, adapter_second=Slot.FIRST)
ALWAYS_SECOND = Judged(adapter_first=Slot.SECOND, adapter_second=Slot.SECOND)
FAILED = Judged(adapter_first=Slot.FIRST, adapter_second=None)


def test_a_win_needs_both_orders():
    assert [pair.outcome for pair in (ADAPTER, BASE, ALWAYS_FIRST)] == [Outcome.ADAPTER, Outcome.BASE, Outcome.TIE]
    tie = Judged(adapter_first=Slot.TIE, adapter_second=Slot.TIE)
    half = Judged(adapter_first=Slot.FIRST, adapter_second=Slot.TIE)
    assert (tie.is_consistent, half.is_consistent, half.outcome) == (True, False, Outcome.TIE)


def test_failures_are_counted_and_become_no_tie():
    found = conduct([ADAPTER] * 8 + [ALWAYS_FIRST] * 2 + [FAILED] * 5)
    assert (found.pairs, found.failed, found.inconsistent.value) == (10, 5, 0.2)
    assert advise([FAILED] * 50 + [ADAPTER] * 18 + [BASE] * 2)[1].ties == 0


def test_a_preference_for_a_place_is_found():
    """Guard: an inconsistent judge without such a preference is not called biased."""
    assert conduct([ADAPTER] * 40 + [ALWAYS_FIRST] * 10).is_biased
    assert conduct([ADAPTER] * 40 + [ALWAYS_SECOND] * 10).is_biased
    assert not conduct([ADAPTER] * 40 + [ALWAYS_FIRST] * 5 + [ALWAYS_SECOND] * 5).is_biased


def test_a_judge_that_contradicts_itself_cannot_be_used():
    assert conduct([ADAPTER] * 7 + [ALWAYS_FIRST, ALWAYS_SECOND, ALWAYS_FIRST]).is_usable
    assert not conduct([ADAPTER] * 6 + [ALWAYS_FIRST, ALWAYS_SECOND] * 2).is_usable
    assert not conduct([]).is_usable
    assert not conduct([FAILED]).is_usable


def test_a_judge_alone_promotes_nothing():
    """Guard: a judge promotes only after 50 prompts shared with people show agreement."""
    better = [ADAPTER] * 18 + [BASE] * 2
    mixed = [(o, o) for o in (Outcome.ADAPTER, Outcome.BASE)] * 25
    assert advise(better)[0] is Advice.ASK_PEOPLE
    assert advise(better, agreement(mixed[:49]))[0] is Advice.ASK_PEOPLE
    assert advise(better, agreement([(Outcome.ADAPTER, Outcome.BASE), *mixed[:1]] * 25))[0] is Advice.ASK_PEOPLE
    assert advise(better, agreement(mixed))[0] is Advice.PROMOTE
    assert advise([BASE] * 18 + [ADAPTER] * 2)[0] is Advice.DO_NOT
    assert advise([BASE] * 18 + [ADAPTER] * 2 + [ALWAYS_FIRST] * 20)[0] is Advice.ASK_PEOPLE


BETTER = Comparison(quality=Quality.BETTER, wins=18, losses=2, ties=0)
WORSE = replace(BETTER, quality=Quality.WORSE)
OPEN = Comparison(quality=Quality.OPEN, wins=9, losses=23, ties=18, more=13)
GOOD = Evidence(votes=BETTER, alpha=0.8, audit=Decision.PASS, provenance_is_whole=True)
SHOWN, NOT_SHOWN = Gain(is_shown=True, words="it solves more"), Gain(is_shown=False, words="it solves as many")
NOT_WORSE = MarginResult(result=NotWorse.SHOWN, score=Interval(value=0.5, low=0.45, high=0.55))
NOT_YET = replace(NOT_WORSE, result=NotWorse.NOT_SHOWN)


@pytest.mark.parametrize(
    ("changes", "answer", "more"),
    [
        ({}, "promote", None),
        ({"alpha": None, "audit": None}, "promote", None),
        ({"audit": Decision.OPEN}, "promote", None),
        ({"truncated_base": 0.1, "truncated_adapter": 0.1}, "promote", None),
        ({"votes": OPEN, "margin": NOT_WORSE, "gain": SHOWN}, "promote", None),
        ({"votes": WORSE}, "do not promote", None),
        ({"vetoes": ("It forgot.",)}, "do not promote", None),
        ({"audit": Decision.FAIL}, "do not promote", None),
        ({"votes": WORSE, "margin": NOT_WORSE, "gain": SHOWN}, "do not promote", None),
        ({"votes": OPEN, "margin": NOT_WORSE, "gain": SHOWN, "vetoes": ("It forgot.",)}, "do not promote", None),
        ({"votes": OPEN, "margin": NOT_WORSE, "gain": SHOWN, "audit": Decision.FAIL}, "do not promote", None),
        ({"votes": OPEN, "margin": NOT_WORSE, "gain": SHOWN, "truncated_base": 0.11}, "not enough evidence", None),
        ({"votes": OPEN, "margin": NOT_WORSE, "gain": SHOWN, "alpha": 0.3}, "not enough evidence", None),
        ({"votes": OPEN, "margin": NOT_YET, "gain": SHOWN}, "not enough evidence", 13),
        ({"votes": OPEN, "gain": SHOWN}, "not enough evidence", 13),
        ({"votes": OPEN, "margin": NOT_WORSE, "gain": NOT_SHOWN}, "not enough evidence", 13),
        ({"votes": OPEN}, "not enough evidence", 13),
        ({"votes": None}, "not enough evidence", None),
        ({"votes": replace(OPEN, more=None)}, "not enough evidence", None),
        ({"votes": OPEN, "margin": NOT_WORSE}, "not enough evidence", 13),
        ({"alpha": 0.39}, "not enough evidence", None),
        ({"truncated_adapter": 0.11}, "not enough evidence", None),
        ({"truncated_base": 0.11}, "not enough evidence", None),
        ({"provenance_is_whole": False}, "not enough evidence", None),
    ],
)
def test_the_verdict_follows_its_rule(changes, answer, more):
    found = judge_adapter(replace(GOOD, **changes))
    assert (found.answer, found.more) == (Recommendation(answer), more)
    assert all(reason.endswith(".") for reason in found.reasons)
    assert found.reasons


def test_no_evidence_is_no_promotion():
    assert judge_adapter(Evidence()).answer is Recommendation.NOT_ENOUGH


def test_a_margin_test_that_runs_says_how_many_prompts_are_left():
    running = MarginResult(result=NotWorse.OPEN, score=NOT_WORSE.score, more=7)
    assert judge_adapter(replace(GOOD, votes=OPEN, margin=running, gain=SHOWN)).more == 7


@pytest.mark.parametrize(
    ("rises", "harm"),
    [
        ([0.0, 0.01, -0.01, 0.0], Harm.NONE),
        ([0.05, 0.06, 0.05, 0.06], Harm.WARNING),
        ([0.20, 0.22, 0.21, 0.20], Harm.VETO),
        ([0.5, -0.1, 0.4, 0.0], Harm.WARNING),
        ([-0.3, -0.2, -0.3, -0.2], Harm.NONE),
    ],
)
def test_forgetting_is_weighed_by_its_interval(rises, harm):
    assert forgetting([2.0] * len(rises), [2.0 + rise for rise in rises]).harm is harm


@pytest.mark.parametrize(
    ("prompts", "answer", "words"),
    [
        (0, Recommendation.NOT_ENOUGH, "The adapter is not evaluated yet."),
        (29, Recommendation.NOT_ENOUGH, "The evaluation has 29 prompts, and a verdict needs at least 30."),
        (30, Recommendation.PROMOTE, "People prefer the adapter to its base."),
    ],
)
def test_few_prompts_promote_nothing(prompts: int, answer: Recommendation, words: str) -> None:
    """Guard: without `LEAST_PROMPTS`, 18 of 20 prompts promoted."""
    votes = compare([Outcome.ADAPTER] * 20)
    verdict = judge_adapter(Evidence(votes=votes, provenance_is_whole=True, prompts=prompts))
    assert (verdict.answer, verdict.reasons) == (answer, (words,))
