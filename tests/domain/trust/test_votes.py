"""Votes on two models: exact error rates and power of the sequential test, majorities, margins, lengths, agreement."""

import math
import random

import pytest

from orchestrator.domain.trust.agreement import cohen_kappa, krippendorff_alpha
from orchestrator.domain.trust.sign_test import (
    SMALL,
    STANDARD,
    Outcome,
    Plan,
    Quality,
    compare,
    error_rates,
    majority,
    sign_p,
)
from orchestrator.domain.trust.win_rates import NotWorse, Pair, length_matched, not_worse, prompts_for_margin, win_rate

A, B, T = Outcome.ADAPTER, Outcome.BASE, Outcome.TIE


@pytest.mark.parametrize(
    ("share", "better", "worse", "mean", "looks"),
    [
        (0.50, 2.39, 2.39, 158, (0, 0.6, 1.6, 2.5)),
        (0.60, 67.7, 0.01, 133, (0.4, 6.8, 22.6, 37.9)),
        (0.65, 96.1, 0, 99, (1.2, 19.4, 44.3, 31.1)),
        (0.72, 99.99, 0, 60, (5.3, 50.1, 40.7, 4.0)),
    ],
)
def test_the_plan_has_the_exact_error_rates_of_the_table(share, better, worse, mean, looks):
    found = error_rates(share)
    assert (100 * found.better, 100 * found.worse) == pytest.approx((better, worse), abs=0.06)
    assert found.mean_decisive == pytest.approx(mean, abs=0.6)
    assert [100 * part for part in found.at_look] == pytest.approx(looks, abs=0.06)


def test_the_small_plan_has_the_rates_of_the_table():
    assert error_rates(0.5, SMALL).better == pytest.approx(0.018, abs=0.0006)
    power = [error_rates(share, SMALL).better for share in (0.65, 0.70, 0.74)]
    assert power[:2] == pytest.approx([0.62, 0.88], abs=0.01)


@pytest.mark.parametrize(
    ("outcomes", "quality"),
    [
        ([A] * 18 + [B] * 2, Quality.BETTER),
        ([B] * 18 + [A] * 2, Quality.WORSE),
        ([A] * 17 + [B] * 3, Quality.OPEN),
        ([A] * 19, Quality.OPEN),
        ([A, T] * 18 + [B, B], Quality.BETTER),
        ([A] * 17 + [B] * 3 + [A] * 12 + [B] * 8, Quality.BETTER),
    ],
)
def test_votes_are_looked_at_only_at_the_looks(outcomes, quality):
    """Guard: looking after each vote would claim a difference of equal models in 35 % of the evaluations."""
    assert compare(outcomes).quality is quality


def test_a_claim_at_a_look_stays():
    assert compare([A] * 18 + [B] * 60).quality is Quality.BETTER


def test_the_papers_votes_decide_nothing():
    found = compare([A] * 9 + [T] * 18 + [B] * 23)
    assert (found.quality, found.wins, found.losses, found.ties) == (Quality.OPEN, 9, 23, 18)
    assert sign_p(9, 23) == pytest.approx(0.020, abs=0.0005)


def test_a_plan_that_ended_asks_for_no_more_votes():
    found = compare([A, B] * 80 + [A] * 500)
    assert (found.quality, found.more) == (Quality.OPEN, None)
    assert found.wins == found.losses == 80


def test_a_forecast_leads_to_a_look_and_counts_ties():
    assert compare([A] * 15 + [B] * 4).more == 21
    assert compare([A] * 17 + [B] * 2).more == 1
    assert compare(([A] * 15 + [B] * 4) * 1 + [T] * 19).more == math.ceil(21 * 39 / 19.5)


@pytest.mark.parametrize(
    ("looks", "bounds"), [((), ()), ((20, 10), (18, 9)), ((20,), (10,)), ((20,), (21,)), ((20,), (18, 29))]
)
def test_a_plan_that_cannot_decide_is_refused(looks, bounds):
    with pytest.raises(ValueError, match=r"plan|bound"):
        Plan(looks, bounds)


@pytest.mark.parametrize(
    ("votes", "outcome"),
    [([A], A), ([A, A, B], A), ([A, B], T), ([A, T, T], T), ([A, A, T, T], T), ([B, T, B], B), ([T], T)],
)
def test_a_prompt_has_the_outcome_of_most_votes(votes, outcome):
    assert majority(votes) is outcome


def test_a_prompt_without_votes_has_no_outcome():
    with pytest.raises(ValueError, match="without votes"):
        majority([])


@pytest.mark.parametrize(
    ("margin", "ties", "prompts"),
    [(0.05, 0, 785), (0.05, 0.2, 628), (0.05, 0.36, 503), (0.1, 0, 197), (0.1, 0.2, 157), (0.1, 0.36, 126)],
)
def test_a_margin_needs_the_prompts_of_the_table(margin, ties, prompts):
    assert prompts_for_margin(margin, ties) == prompts


def test_a_margin_is_tested_once_and_only_after_the_planned_prompts():
    """Guard: with more prompts than planned, one could stop where it suits."""
    outcomes = [A, B, T] * 60
    assert not_worse(outcomes[:149], 0.1, 150).more == 1
    assert not_worse(outcomes[:150], 0.1, 150).result is NotWorse.SHOWN
    assert not_worse([*outcomes[:150], *[B] * 500], 0.1, 150).result is NotWorse.SHOWN
    assert not_worse([A, B, B] * 50, 0.1, 150).result is NotWorse.NOT_SHOWN


def test_a_model_worse_by_the_margin_is_rarely_called_not_worse():
    draw, shown = random.Random(5), 0
    for _ in range(600):
        outcomes = [A if draw.random() < 0.4 else B for _ in range(197)]
        shown += not_worse(outcomes, 0.1, 197).result is NotWorse.SHOWN
    assert shown / 600 <= 0.045


def test_answers_of_other_lengths_are_left_out():
    pairs = [Pair(outcome=A, adapter_length=900, base_length=300)] * 20 + [
        Pair(outcome=B, adapter_length=110, base_length=100),
        Pair(outcome=T, adapter_length=100, base_length=120),
        Pair(outcome=A, adapter_length=0, base_length=0),
    ]
    assert win_rate(pair.outcome for pair in pairs).share.value == pytest.approx(21 / 22)
    found = length_matched(pairs)
    assert (found.decisive, found.ties, found.share.value) == (2, 1, 0.5)


def test_kappa_of_the_textbook():
    pairs = [("yes", "yes")] * 20 + [("yes", "no")] * 5 + [("no", "yes")] * 10 + [("no", "no")] * 15
    assert cohen_kappa(pairs) == pytest.approx(0.4)
    assert cohen_kappa([]) is None
    assert cohen_kappa([("a", "a")] * 9) is None


def test_alpha_of_krippendorffs_example():
    """Three raters and 15 units with gaps: .691 for nominal labels."""
    first = ["*", "*", "*", "*", "*", "3", "4", "1", "2", "1", "1", "3", "3", "*", "3"]
    second = ["1", "*", "2", "1", "3", "3", "4", "3", "*", "*", "*", "*", "*", "*", "*"]
    third = ["*", "*", "2", "1", "3", "4", "4", "*", "2", "1", "1", "3", "3", "*", "4"]
    units = [[label for label in unit if label != "*"] for unit in zip(first, second, third, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.691, abs=0.0005)
    assert krippendorff_alpha([["a"], ["b"]]) is None
    assert krippendorff_alpha([["a", "a"], ["a", "a"]]) is None


def test_labels_at_random_have_no_agreement():
    draw = random.Random(1)
    units = [[draw.randrange(3) for _ in range(3)] for _ in range(3000)]
    assert krippendorff_alpha(units) == pytest.approx(0, abs=0.03)


def test_equal_models_by_votes_get_few_claims():
    draw, claims = random.Random(2), 0
    for _ in range(1000):
        votes = (draw.choice((A, B)) if draw.random() >= 0.36 else T for _ in range(400))
        claims += compare(votes, STANDARD).quality is not Quality.OPEN
    assert claims / 1000 <= 0.065
