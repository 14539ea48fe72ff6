"""A gain elsewhere, for an adapter that is not worse by a margin: its test, and how often it promotes wrongly."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from orchestrator.domain.trust.declared_gain import FALSE_GAIN, Gain, SolvedTasks, task_gain
from orchestrator.domain.trust.sign_test import Outcome, Quality, compare, error_rates
from orchestrator.domain.trust.verdict import Evidence, Recommendation, judge_adapter
from orchestrator.domain.trust.win_rates import not_worse, prompts_for_margin

SEEN = SolvedTasks(tasks=100, base=61, adapter=72, only_base=2, only_adapter=13)
MARGIN, RUNS, TASKS = 0.1, 2_000, 100


def test_a_gain_needs_more_tasks_than_chance_explains() -> None:
    assert task_gain(SEEN) == Gain(is_shown=True, words="the adapter solves 72 of 100 tasks, and its base 61 (p 0.007)")
    assert task_gain(replace(SEEN, only_base=0, only_adapter=6)).is_shown
    assert not task_gain(replace(SEEN, only_base=0, only_adapter=5)).is_shown
    assert not task_gain(replace(SEEN, only_base=13, only_adapter=2)).is_shown, "a loss is no gain"
    assert not task_gain(replace(SEEN, only_base=0, only_adapter=0)).is_shown


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (None, "no task was scored"),
        (replace(SEEN, are_cut=True), "too many answers to the tasks were cut at the token limit"),
        (replace(SEEN, are_trained_on=True), "some of the tasks are training rows"),
    ],
)
def test_tasks_that_measure_something_else_show_no_gain(found: SolvedTasks | None, words: str) -> None:
    """Guards: without `are_cut` the arm with shorter answers gained, without `are_trained_on` memory did."""
    assert task_gain(found) == Gain(is_shown=False, words=words)


def promoted(draw: random.Random, runs: int, *, win: float, tie: float, base: float, adapter: float) -> float:
    """Share of promotions if the adapter wins, ties and solves tasks with these chances."""
    planned, found = prompts_for_margin(MARGIN), 0
    for _ in range(runs):
        votes = draw.choices(list(Outcome), [(1 - tie) * win, (1 - tie) * (1 - win), tie], k=planned)
        solved = [(draw.random() < base, draw.random() < adapter) for _ in range(TASKS)]
        tasks = SolvedTasks(
            tasks=TASKS,
            base=sum(one for one, _ in solved),
            adapter=sum(other for _, other in solved),
            only_base=solved.count((True, False)),
            only_adapter=solved.count((False, True)),
        )
        test = compare(votes)
        if test.quality is not Quality.OPEN:  # it has closed before the margin is tested
            votes = votes[: test.wins + test.losses + test.ties]
        evidence = Evidence(
            votes=test, margin=not_worse(votes, MARGIN, planned), gain=task_gain(tasks), provenance_is_whole=True
        )
        found += judge_adapter(evidence).answer is Recommendation.PROMOTE
    return found / runs


@pytest.mark.parametrize("tie", [0.0, 0.36])
def test_equal_models_are_rarely_promoted(tie: float) -> None:
    """No gain and no loss. Both ways to a promotion have an error rate, and together they are not above the sum. Guard:
    with a p-value of .2 for a gain, one in ten was promoted."""
    share = promoted(random.Random(7), RUNS, win=0.5, tie=tie, base=0.6, adapter=0.6)
    assert 0.005 < share <= error_rates(0.5).better + 0.025
    assert FALSE_GAIN == 0.025


def test_a_gain_does_not_promote_a_worse_adapter() -> None:
    """Worse by exactly the margin, and much better at the tasks. The test of a margin has an error of 2.5 %; the rest
    is what 2,000 runs may be off by."""
    assert promoted(random.Random(7), RUNS, win=0.4, tie=0.0, base=0.5, adapter=0.9) <= 0.035


def test_an_equal_adapter_with_a_gain_is_usually_promoted() -> None:
    """The margin's prompts show it in four of five cases if both models are equal."""
    assert promoted(random.Random(7), 500, win=0.5, tie=0.0, base=0.5, adapter=0.9) >= 0.7
