"""Counting votes of a blind comparison: sides, order, decided prompts, forecasts. Nothing of it needs a database."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from orchestrator.domain import blind_votes
from orchestrator.domain.comparisons import BlindComparison, Choice, Ending, PlanName, Vote
from orchestrator.domain.evaluations import Arm
from orchestrator.domain.trust.sign_test import Outcome, Quality
from orchestrator.domain.trust.win_rates import NotWorse

FIRST, SECOND, TIE = Choice.FIRST, Choice.SECOND, Choice.TIE


def comparison(prompts: int = 200, *, plan: PlanName = PlanName.STANDARD, **changes) -> BlindComparison:
    made = {"question": "Which?", "margin": None, "margin_prompts": 0, "key": "k" * 64, "identical": []}
    return BlindComparison(
        id="comparison-1",
        job_id="job-1",
        member_id="alice",
        plan=plan,
        prompts=prompts,
        created_at=0.0,
        **(made | changes),
    )


def vote_for(c: BlindComparison, number: int, outcome: Outcome, rater: str = "rater-1", at: float = 0.0) -> Vote:
    """What an honest rater says who finds this outcome."""
    choice = TIE
    if outcome is not Outcome.TIE:
        choice = FIRST if blind_votes.first_arm(c.key, number, rater).value == outcome.value else SECOND
    return Vote(comparison_id=c.id, number=number, rater_id=rater, choice=choice, note="", at=at)


def rate(c: BlindComparison, outcomes: list[Outcome]) -> list[Vote]:
    """The first prompts of the order have these outcomes. Two raters agree where two are needed."""
    votes: list[Vote] = []
    for number, outcome in zip(blind_votes.asked(c), outcomes, strict=False):
        for rater in range(blind_votes.votes_needed(c, number)):
            votes.append(vote_for(c, number, outcome, f"rater-{rater}", float(len(votes))))
    return votes


def test_sides_are_even_and_differ_between_raters_and_keys() -> None:
    """Guards: without the rater or the key in the hash, one person could tell another which side to choose."""
    keys = [(key, number, rater) for key in ("a", "b") for number in range(500) for rater in ("r", "s")]
    sides = {one: blind_votes.first_arm(*one) for one in keys}
    assert 900 < sum(side is Arm.BASE for side in sides.values()) < 1_100
    same_rater = sum(sides["a", n, "r"] is sides["b", n, "r"] for n in range(500))
    same_key = sum(sides["a", n, "r"] is sides["a", n, "s"] for n in range(500))
    assert 190 < same_rater < 310
    assert 190 < same_key < 310
    names = {blind_votes.screen_name(*one) for one in keys}
    assert len(names) == len(keys)


def test_the_order_is_a_hash_of_the_key() -> None:
    c = comparison(50, identical=[3, 4])
    assert sorted(blind_votes.order(c)) == list(range(50))
    assert blind_votes.order(c) != blind_votes.order(replace(c, key="other"))
    assert blind_votes.asked(c) == [number for number in blind_votes.order(c) if number not in (3, 4)]


def test_a_fifth_of_the_prompts_need_two_raters() -> None:
    needed = Counter(blind_votes.votes_needed(comparison(), number) for number in range(5_000))
    assert set(needed) == {1, 2}
    assert 900 < needed[2] < 1_100


def test_an_honest_vote_means_what_its_rater_found() -> None:
    c = comparison()
    for number in range(50):
        for outcome in Outcome:
            assert blind_votes.outcome_of(c.key, vote_for(c, number, outcome)) is outcome


def test_a_prompt_is_decided_once() -> None:
    """Guard: if later votes changed the majority, a look of the test could be repeated until it claims something."""
    c = comparison()
    once = next(n for n in range(200) if blind_votes.votes_needed(c, n) == 1)
    twice = next(n for n in range(200) if blind_votes.votes_needed(c, n) == 2)
    votes = [vote_for(c, twice, Outcome.BASE, "r1", 1.0), vote_for(c, once, Outcome.ADAPTER, "r1", 2.0)]
    assert blind_votes.count(c, votes).decided == {once: Outcome.ADAPTER}
    votes += [vote_for(c, once, Outcome.BASE, f"r{n}", 2.0 + n) for n in (2, 3, 4)]
    votes += [vote_for(c, twice, Outcome.ADAPTER, "r2", 9.0)]
    counted = blind_votes.count(c, votes)
    assert list(counted.decided.items()) == [(once, Outcome.ADAPTER), (twice, Outcome.TIE)]
    assert blind_votes.agreement(counted).prompts == 2


@pytest.mark.parametrize(("winner", "quality"), [(Outcome.ADAPTER, Quality.BETTER), (Outcome.BASE, Quality.WORSE)])
def test_the_test_decides_at_its_first_look(winner: Outcome, quality: Quality) -> None:
    c = comparison()
    votes = rate(c, [winner] * 20)
    assert blind_votes.ending(c, blind_votes.count(c, votes[:-1])) is None
    counted = blind_votes.count(c, votes)
    assert blind_votes.ending(c, counted) is Ending.DECIDED
    found = blind_votes.result(c, counted, dict.fromkeys(range(200), (10, 10)))
    assert (found.test.quality, found.all_prompts.decisive, found.similar_length.decisive) == (quality, 20, 20)
    assert found.words.startswith("People prefer the ")


def test_a_plan_ends_without_a_claim() -> None:
    c = comparison(plan=PlanName.SMALL)
    outcomes = [Outcome.ADAPTER, Outcome.BASE] * 32
    assert blind_votes.ending(c, blind_votes.count(c, rate(c, outcomes[:-1]))) is None
    counted = blind_votes.count(c, rate(c, outcomes))
    assert blind_votes.ending(c, counted) is Ending.PLAN_ENDED
    assert blind_votes.ratings_to_come(c, counted) == 0
    assert blind_votes.result(c, counted, dict.fromkeys(range(200), (1, 1))).words.startswith("Not enough evidence")


def test_prompts_run_out() -> None:
    c = comparison(25, identical=[0])
    counted = blind_votes.count(c, rate(c, [Outcome.TIE] * 24))
    assert blind_votes.ending(c, counted) is Ending.ALL_RATED
    assert blind_votes.ending(c, blind_votes.count(c, rate(c, [Outcome.TIE] * 23))) is None


def test_a_margin_is_tested_on_the_first_prompts_of_the_order() -> None:
    """Guards: with all identical answers first the score went to one half, and without waiting for the margin the
    comparison ended with it open."""
    c = comparison(100, plan=PlanName.SMALL, margin=0.2, margin_prompts=90)
    c = replace(c, identical=blind_votes.order(c)[90:])
    outcomes = [Outcome.ADAPTER, Outcome.BASE] * 45
    early = blind_votes.count(c, rate(c, outcomes[:64]))
    assert blind_votes.ending(c, early) is None
    assert blind_votes.ratings_to_come(c, early) >= 26
    margin = blind_votes.margin_test(c, early)
    assert margin is not None
    assert (margin.result, margin.more) == (NotWorse.OPEN, 26)
    counted = blind_votes.count(c, rate(c, outcomes))
    assert blind_votes.ending(c, counted) is Ending.PLAN_ENDED
    found = blind_votes.result(c, counted, dict.fromkeys(range(100), (1, 1)))
    assert found.margin is not None
    assert (found.margin.result, found.margin.score.value) == (NotWorse.SHOWN, 0.5)
    assert "Not worse by more than 20%: shown." in found.words


def test_votes_for_longer_answers_show_in_the_matched_rate() -> None:
    c = comparison()
    counted = blind_votes.count(c, rate(c, [Outcome.ADAPTER] * 20))
    lengths = dict.fromkeys(range(200), (10, 30))
    found = blind_votes.result(c, counted, lengths)
    assert (found.all_prompts.decisive, found.similar_length.decisive) == (20, 0)


def test_raters_who_disagree_promote_nothing() -> None:
    c, votes = comparison(), []
    for place, number in enumerate(n for n in blind_votes.asked(c) if blind_votes.votes_needed(c, n) == 2):
        pair = (Outcome.ADAPTER, Outcome.BASE) if place % 2 else (Outcome.BASE, Outcome.ADAPTER)
        votes += [vote_for(c, number, one, f"r{n}", float(len(votes) + n)) for n, one in enumerate(pair)]
    found = blind_votes.result(c, blind_votes.count(c, votes), dict.fromkeys(range(200), (1, 1)))
    assert found.agreement.is_too_low
    assert "Raters disagree too much" in found.words


def test_the_forecast_counts_ratings_and_not_prompts() -> None:
    c = comparison()
    none = blind_votes.count(c, [])
    assert 40 < blind_votes.ratings_to_come(c, none) < 60
    few = comparison(30)
    assert blind_votes.ratings_to_come(few, none) == sum(blind_votes.votes_needed(few, n) for n in range(30))


def test_who_wins_does_not_show_in_the_counts() -> None:
    """Guard: the owner's numbers are the same with both models exchanged."""
    c, rng = comparison(), random.Random(1)
    for size in (5, 15, 19, 31):
        outcomes = rng.choices([Outcome.ADAPTER, Outcome.BASE, Outcome.TIE], [5, 3, 2], k=size)
        turned = [{Outcome.ADAPTER: Outcome.BASE, Outcome.BASE: Outcome.ADAPTER}.get(one, one) for one in outcomes]
        one, other = (blind_votes.count(c, rate(c, found)) for found in (outcomes, turned))
        assert blind_votes.ratings_to_come(c, one) == blind_votes.ratings_to_come(c, other)
        assert blind_votes.agreement(one) == blind_votes.agreement(other)


def test_raters_at_the_same_time_get_different_prompts() -> None:
    """Guard: without taking turns both saw the same prompt, and one of two votes was not needed."""
    c = comparison()
    first = blind_votes.next_number(c, [], "r1", 100.0)
    assert first == blind_votes.asked(c)[0]
    single = [n for n in blind_votes.asked(c) if blind_votes.votes_needed(c, n) == 1]
    votes = [vote_for(c, single[0], Outcome.TIE, "r1", 100.0), vote_for(c, single[1], Outcome.TIE, "r2", 100.0)]
    now = [blind_votes.next_number(c, votes, rater, 101.0) for rater in ("r1", "r2")]
    assert None not in now
    assert now[0] != now[1]
    later = [blind_votes.next_number(c, votes, rater, 2_000.0) for rater in ("r1", "r2")]
    assert later[0] == later[1]


def test_a_second_rater_first_sees_what_waits_for_one() -> None:
    c = comparison()
    twice = [n for n in blind_votes.asked(c) if blind_votes.votes_needed(c, n) == 2][3]
    votes = [vote_for(c, twice, Outcome.TIE, "r1", 1.0)]
    assert blind_votes.next_number(c, votes, "r2", 2.0) == twice
    assert blind_votes.next_number(c, votes, "r1", 2.0) != twice
    votes.append(vote_for(c, twice, Outcome.TIE, "r2", 2.0))
    assert blind_votes.next_number(c, votes, "r3", 3.0) != twice
