"""Blind comparisons: who starts, rates and closes them, what is refused, and what a verdict learns."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import Engine

from orchestrator.domain import blind_votes
from orchestrator.domain.choices import GainKind
from orchestrator.domain.comparisons import BlindComparison, Choice, Ending, PlanName, Rater
from orchestrator.domain.errors import ConflictError, InvalidError, NotFoundError
from orchestrator.domain.trust.sign_test import Quality
from orchestrator.domain.trust.win_rates import NotWorse
from orchestrator.services import comparison_raters, comparison_rating, comparisons
from orchestrator.services.comparison_export import export
from orchestrator.services.jobs import cancel
from orchestrator.services.members import remove_member
from tests.helpers.evaluations import add_evaluation, tasks
from tests.helpers.world import World
from tests.services.test_dataset_deletion import meanwhile
from tests.services.test_member_removal import admin

FIRST, SECOND, TIE = Choice.FIRST, Choice.SECOND, Choice.TIE


def evaluated(world: World, answers: int = 60, **how) -> str:
    job = world.submit("alice")
    add_evaluation(world.ctx.uow, job, answers, **how)
    return job


def start(world: World, job: str, who: str = "alice", **how) -> BlindComparison:
    return comparisons.start(world.ctx, world.actors[who], job, **how)


def status(world: World, c: BlindComparison, who: str = "alice") -> comparisons.Status:
    return comparisons.status(world.ctx, world.actors[who], c.id)


def invite(world: World, c: BlindComparison, name: str = "Ann") -> tuple[Rater, str]:
    """A rater whose browser has its cookie."""
    _, secret = comparison_raters.add_rater(world.ctx, world.actors["alice"], c.id, name)
    return comparison_raters.open_link(world.ctx, secret)


def screen(world: World, rater: tuple[Rater, str]) -> comparison_rating.Screen:
    found = comparison_rating.desk(world.ctx, rater[0].id, rater[1]).screen
    assert found is not None
    return found


def vote(world: World, rater: tuple[Rater, str], choice: Choice, name: str | None = None, note: str = "") -> str:
    name = name or screen(world, rater).name
    comparison_rating.give(world.ctx, rater[0].id, rater[1], screen=name, choice=choice, note=note)
    return name


def prefer(world: World, rater: tuple[Rater, str], liked: str) -> None:
    """Vote for the answer that begins with these words."""
    first, second = screen(world, rater).answers
    assert first != second
    vote(world, rater, FIRST if first.startswith(liked) else SECOND)


def rate_all(world: World, raters: list[tuple[Rater, str]], liked: str = "Another") -> int:
    """Raters take turns until nobody has a prompt left. Returns the number of votes."""
    given = 0
    while True:
        asked = [r for r in raters if comparison_rating.desk(world.ctx, r[0].id, r[1]).screen is not None]
        if not asked:
            return given
        prefer(world, asked[given % len(asked)], liked)
        world.clock.tick(1)
        given += 1


@pytest.mark.parametrize(
    ("liked", "quality", "words"),
    [
        ("Another", Quality.BETTER, "People prefer the adapter to its base model: the adapter won 20 of 20 decisive"),
        ("One", Quality.WORSE, "People prefer the base model to the adapter: the adapter won 0 of 20 decisive"),
    ],
)
def test_votes_decide_and_close_the_comparison(world: World, liked: str, quality: Quality, words: str) -> None:
    """Guard: without `end` in `give` a decided comparison took more votes, and its test was looked at again."""
    job = evaluated(world, same=5)
    c = start(world, job)
    raters = [invite(world, c), invite(world, c, "Ben")]
    with world.ctx.uow() as tx:
        assert comparisons.evidence_of(tx, job) is None
    assert status(world, c).result is None
    rate_all(world, raters, liked)
    found = status(world, c)
    assert (found.comparison.ending, found.decisive, found.comparison.identical) == (
        Ending.DECIDED,
        20,
        [0, 1, 2, 3, 4],
    )
    assert found.result is not None
    assert found.result.words.startswith(words)
    assert (found.result.test.quality, found.result.all_prompts.ties) == (quality, 5)
    assert all(comparison_rating.desk(world.ctx, r[0].id, r[1]).is_closed for r in raters)
    with world.ctx.uow() as tx:
        evidence = comparisons.evidence_of(tx, job)
        assert evidence is not None
        assert (evidence.votes, evidence.margin, evidence.alpha) == (
            found.result.test,
            None,
            found.result.agreement.alpha,
        )


def test_a_rater_sees_each_prompt_once_with_texts_alone(world: World) -> None:
    """Guards: with the model's name as the side, or a fixed side, the texts would come in one order."""
    turns = [{"role": r, "content": f"{r} turn"} for r in ("user", "assistant", "user")]
    c = start(world, evaluated(world, 200, prompt=turns))
    rater = invite(world, c)
    bases_first = 0
    for _ in range(40):
        seen = screen(world, rater)
        assert [role for role, _ in seen.prompt] == ["user", "assistant", "user"]
        assert seen == screen(world, rater)
        bases_first += seen.answers[0].startswith("One")
        vote(world, rater, TIE, seen.name)
    assert 4 < bases_first < 36  # by chance it is not in one of ten million runs
    with world.ctx.uow() as tx:
        assert len({v.number for v in tx.comparisons.votes(c.id)}) == 40


def test_a_comparison_closed_early_is_not_enough_evidence(world: World) -> None:
    job = evaluated(world)
    c = start(world, job)
    rater = invite(world, c)
    for _ in range(3):
        prefer(world, rater, "Another")
    closed = comparisons.close(world.ctx, world.actors["alice"], c.id)
    assert closed == comparisons.close(world.ctx, world.actors["alice"], c.id)
    found = status(world, c)
    assert (found.comparison.ending, found.more) == (Ending.BY_OWNER, 0)
    assert found.result is not None
    assert found.result.test.quality is Quality.OPEN
    assert found.result.words.startswith("Not enough evidence that one model is better")
    with world.ctx.uow() as tx:
        evidence = comparisons.evidence_of(tx, job)
    assert evidence is not None
    assert evidence.votes.quality is Quality.OPEN
    world.clock.tick(1)
    again = start(world, job, plan=PlanName.SMALL)
    with world.ctx.uow() as tx:
        assert comparisons.evidence_of(tx, job) == evidence
        assert [one.id for one in tx.comparisons.of_evaluation(job)] == [again.id, c.id]


def test_a_decided_comparison_is_not_repeated(world: World) -> None:
    """Guard: whoever could repeat it until the result pleases would be right 5 % more often each time."""
    job = evaluated(world)
    rate_all(world, [invite(world, c := start(world, job)), invite(world, c, "Ben")], "One")
    with pytest.raises(ConflictError, match="has decided already"):
        start(world, job)


def test_one_comparison_is_open_and_its_plan_is_fixed(world: World) -> None:
    """Guard: a plan changed after a look would be chosen by what the look showed."""
    job = evaluated(world)
    c, alice = start(world, job), world.actors["alice"]
    with pytest.raises(ConflictError, match="has an open comparison"):
        start(world, job, plan=PlanName.SMALL)
    changed = comparisons.change(world.ctx, alice, c.id, plan=PlanName.SMALL, margin=0.1, question="Kinder?")
    assert (changed.plan, changed.margin, changed.margin_prompts, changed.question) == ("small", 0.1, 60, "Kinder?")
    assert status(world, c).comparison == changed
    vote(world, invite(world, c), TIE)
    changes: tuple[dict[str, Any], ...] = ({"plan": PlanName.STANDARD}, {"margin": 0.2}, {"question": "Better?"})
    for how in changes:
        with pytest.raises(ConflictError, match="fixed since the first vote"):
            comparisons.change(world.ctx, alice, c.id, **how)
    comparisons.close(world.ctx, alice, c.id)
    with pytest.raises(ConflictError, match="is closed"):
        comparisons.change(world.ctx, alice, c.id, plan=PlanName.STANDARD)


def test_a_gain_is_declared_with_a_margin_before_the_first_vote(world: World) -> None:
    """Guards: without `_require_gain` one was declared that nothing could show; changed after a vote, it would be one
    that the votes ask for."""
    alice, none = world.actors["alice"], evaluated(world)
    with pytest.raises(InvalidError, match="No tasks were scored in this evaluation"):
        start(world, none, margin=0.1, gain=GainKind.TASKS)
    job = evaluated(world, tasks=tasks())
    with pytest.raises(InvalidError, match="Give a margin"):
        start(world, job, gain=GainKind.TASKS)
    c = start(world, job)
    with pytest.raises(InvalidError, match="Give a margin"):
        comparisons.change(world.ctx, alice, c.id, gain=GainKind.TASKS)
    changed = comparisons.change(world.ctx, alice, c.id, margin=0.1, gain=GainKind.TASKS)
    assert (changed.margin, changed.gain) == (0.1, "tasks")
    assert status(world, c).comparison == changed
    vote(world, invite(world, c), TIE)
    with pytest.raises(ConflictError, match="fixed since the first vote"):
        comparisons.change(world.ctx, alice, c.id, gain=GainKind.TASKS)


@pytest.mark.parametrize(
    ("how", "asked", "words"),
    [
        ({"answers": 1}, {}, r"Only 1 of 1 prompts have two different answers"),
        ({"answers": 30, "same": 30}, {}, r"identical, so there is nothing to compare"),
        ({"answers": 30, "base": "  same\n", "adapter": "same"}, {}, r"identical, so there is nothing to compare"),
        ({"answers": 19}, {}, r"the standard plan needs at least 20\. Evaluate more"),
        ({"answers": 29}, {"margin": 0.1}, r"A margin needs at least 30 prompts, and this evaluation has 29"),
    ],
)
def test_too_few_answers_are_refused_in_words(world: World, how: dict, asked: dict, words: str) -> None:
    job = evaluated(world, **how)
    with pytest.raises(InvalidError, match=words):
        start(world, job, **asked)


def test_an_evaluation_without_answers_cannot_be_compared(world: World) -> None:
    job = evaluated(world, 0)
    with pytest.raises(ConflictError, match="no answers yet"):
        start(world, job)
    with world.ctx.uow() as tx:
        evaluation = tx.evaluations.get(job)
        assert evaluation is not None
        evaluation.finished_at = 1.0
        tx.evaluations.finish(evaluation, [])
    with pytest.raises(InvalidError, match="has no answers, so there is nothing to compare"):
        start(world, job)


def test_voting_twice(world: World) -> None:
    """Guards: the same vote again changes nothing; another one counts only until the prompt is decided."""
    c = start(world, evaluated(world, 200))
    rater = invite(world, c)
    decided = changed = 0
    while not (decided and changed):
        name = vote(world, rater, FIRST, note="https://a.example\0")
        vote(world, rater, FIRST, name)
        with world.ctx.uow() as tx:
            given = tx.comparisons.votes(c.id)[-1]
        assert (given.choice, given.note) == (FIRST, "https://a.example")
        if blind_votes.votes_needed(c, given.number) == 1:
            with pytest.raises(ConflictError, match=r"is decided\. Your first vote is kept"):
                vote(world, rater, SECOND, name)
            decided += 1
        else:
            world.clock.tick(5)
            vote(world, rater, TIE, name)
            with world.ctx.uow() as tx:
                now = tx.comparisons.votes(c.id)[-1]
            assert (now.number, now.choice, now.at) == (given.number, TIE, given.at)
            changed += 1
        assert status(world, c).ratings == decided + changed


def test_two_raters_at_once_on_one_prompt(world: World) -> None:
    """Both votes are kept. The first one decides, and the second tells about agreement."""
    c = start(world, evaluated(world, 200))
    ann, ben = invite(world, c), invite(world, c, "Ben")
    while blind_votes.votes_needed(c, number := _number(c, screen(world, ann).name, ann)) != 1:
        vote(world, ann, TIE)
    name = blind_votes.screen_name(c.key, number, ben[0].id)
    vote(world, ann, TIE)
    before = status(world, c)
    vote(world, ben, FIRST, name)
    after = status(world, c)
    assert (after.ratings, after.ties, after.decisive) == (before.ratings + 1, before.ties, 0)
    assert (after.agreement.prompts, after.agreement.equal) == (1, 0)


def _number(c: BlindComparison, name: str, rater: tuple[Rater, str]) -> int:
    return next(n for n in range(c.prompts) if blind_votes.screen_name(c.key, n, rater[0].id) == name)


def test_votes_at_the_same_time_are_all_kept(world: World) -> None:
    """Guard: without the lock of the comparison two votes closed it twice, or one was counted without the other."""
    c = start(world, evaluated(world))
    raters = [invite(world, c, f"Rater {n}") for n in range(4)]
    faults: list[Exception] = []

    def rate(rater: tuple[Rater, str]) -> None:
        try:
            while (seen := comparison_rating.desk(world.ctx, rater[0].id, rater[1]).screen) is not None:
                vote(world, rater, FIRST if seen.answers[0].startswith("Another") else SECOND, seen.name)
        except ConflictError as error:
            faults.append(error)

    threads = [threading.Thread(target=rate, args=(rater,)) for rater in raters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found = status(world, c)
    assert (found.comparison.ending, found.decisive) == (Ending.DECIDED, 20)
    assert {str(fault) for fault in faults} <= {comparison_rating.CLOSED}
    with world.ctx.uow() as tx:
        times = [v.at for v in tx.comparisons.votes(c.id)]
    assert len(set(times)) == len(times) == found.ratings


def test_a_vote_after_closing_is_refused_and_nothing_is_lost(world: World) -> None:
    c = start(world, evaluated(world))
    rater = invite(world, c)
    given = vote(world, rater, TIE)
    open_page = screen(world, rater).name
    comparisons.close(world.ctx, world.actors["alice"], c.id)
    with pytest.raises(ConflictError, match=r"closed\. Your earlier votes are kept"):
        vote(world, rater, FIRST, open_page)
    vote(world, rater, TIE, given)
    assert status(world, c).ratings == 1
    with pytest.raises(ConflictError, match="is closed, so it takes"):
        comparison_raters.add_rater(world.ctx, world.actors["alice"], c.id, "Ben")


def test_a_link_works_once_and_only_a_hash_is_stored(world: World) -> None:
    """Guard: without `opened_at` a forwarded link would have opened a second browser."""
    c = start(world, evaluated(world))
    alice = world.actors["alice"]
    rater, secret = comparison_raters.add_rater(world.ctx, alice, c.id, "Ann")
    assert comparison_raters.look_up_link(world.ctx, secret).id == rater.id
    _, cookie = comparison_raters.open_link(world.ctx, secret)
    with pytest.raises(ConflictError, match="opened already"):
        comparison_raters.open_link(world.ctx, secret)
    for use in (comparison_raters.open_link, comparison_raters.look_up_link):
        with pytest.raises(NotFoundError, match="does not work"):
            use(world.ctx, "th_wrong")
    with world.ctx.uow() as tx:
        stored = repr(tx.comparisons.rater(rater.id))
    assert secret not in stored
    assert cookie not in stored
    for wrong in ("", secret, "th_wrong"):
        with pytest.raises(NotFoundError, match="does not work"):
            comparison_rating.desk(world.ctx, rater.id, wrong)
    with pytest.raises(NotFoundError):
        comparison_rating.desk(world.ctx, "rater-unknown", cookie)


def test_one_of_two_browsers_opens_a_link(world: World, engine: Engine) -> None:
    """Guard: without the lock of the rater both browsers got a cookie, and the first one's stopped working."""
    c = start(world, evaluated(world))
    rater, secret = comparison_raters.add_rater(world.ctx, world.actors["alice"], c.id, "Ann")
    said: list[str] = []

    def use() -> None:
        try:
            comparison_raters.open_link(world.ctx, secret)
        except ConflictError as error:
            said.append(str(error))

    with world.ctx.uow() as tx:
        first = tx.comparisons.rater_for_update(rater.id)
        assert first is not None
        first.cookie_hash, first.opened_at = "c" * 64, 1.0
        tx.comparisons.save_rater(first)
        second = meanwhile(engine, use)
    second.join(60)
    assert said == [comparison_raters.USED]
    with world.ctx.uow() as tx:
        assert tx.comparisons.rater(rater.id) == first


def test_a_revoked_link_stops_and_votes_stay(world: World) -> None:
    c, alice = start(world, evaluated(world)), world.actors["alice"]
    rater = invite(world, c)
    vote(world, rater, TIE)
    name = screen(world, rater).name
    comparison_raters.revoke(world.ctx, alice, c.id, rater[0].id)
    with pytest.raises(NotFoundError, match="does not work"):
        comparison_rating.desk(world.ctx, rater[0].id, rater[1])
    with pytest.raises(NotFoundError, match="does not work"):
        vote(world, rater, TIE, name)
    (shown,) = status(world, c).raters
    assert (shown.ratings, shown.revoked_at) == (1, world.clock.now())
    _, secret = comparison_raters.new_link(world.ctx, alice, c.id, rater[0].id)
    again = comparison_raters.open_link(world.ctx, secret)
    assert again[0].id == rater[0].id
    vote(world, again, TIE, name)
    assert status(world, c).ratings == 2


def test_raters_have_names_of_their_own(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    c, alice = start(world, evaluated(world)), world.actors["alice"]
    comparison_raters.add_rater(world.ctx, alice, c.id, "Ann")
    with pytest.raises(ConflictError, match="already a rater named ann"):
        comparison_raters.add_rater(world.ctx, alice, c.id, "ann")
    monkeypatch.setattr(comparison_raters, "MAX_RATERS", 1)  # a hundred raters would take long
    with pytest.raises(ConflictError, match="at most 1 raters"):
        comparison_raters.add_rater(world.ctx, alice, c.id, "Ben")


def test_only_the_owner_sees_a_comparison(world: World) -> None:
    job = evaluated(world)
    c, bob = start(world, job), world.actors["bob"]
    rater, _ = comparison_raters.add_rater(world.ctx, world.actors["alice"], c.id, "Ann")
    for call in (
        lambda: comparisons.start(world.ctx, bob, job),
        lambda: comparisons.of_evaluation(world.ctx, bob, job),
        lambda: comparisons.status(world.ctx, bob, c.id),
        lambda: comparisons.change(world.ctx, bob, c.id, plan=PlanName.SMALL),
        lambda: comparisons.close(world.ctx, bob, c.id),
        lambda: comparison_raters.add_rater(world.ctx, bob, c.id, "Eve"),
        lambda: comparison_raters.new_link(world.ctx, bob, c.id, rater.id),
        lambda: comparison_raters.revoke(world.ctx, bob, c.id, rater.id),
        lambda: export(world.ctx, bob, c.id),
    ):
        with pytest.raises(NotFoundError):
            call()
    other = start(world, evaluated(world))
    with pytest.raises(NotFoundError, match="no rater"):
        comparison_raters.revoke(world.ctx, world.actors["alice"], other.id, rater.id)
    elsewhere = invite(world, other, "Ann")
    with pytest.raises(NotFoundError, match="belongs to no prompt"):
        vote(world, elsewhere, FIRST, blind_votes.screen_name(c.key, 0, rater.id))


def test_one_rater_alone_leaves_a_fifth_of_the_prompts_open(world: World) -> None:
    c = start(world, evaluated(world, 20, base_tokens=50))
    rater = invite(world, c)
    assert rate_all(world, [rater]) == 20
    found = status(world, c)
    waiting = sum(blind_votes.votes_needed(c, number) == 2 for number in range(20))
    assert (found.waiting, found.more, found.comparison.closed_at) == (waiting, waiting, None)
    assert waiting
    rate_all(world, [invite(world, c, "Ben")])
    after = status(world, c)
    assert (after.comparison.ending, after.agreement.equal) == (Ending.DECIDED, waiting)
    assert after.result is not None
    assert after.result.similar_length.decisive == 0


def test_a_margin_declared_before_the_votes_is_tested(world: World) -> None:
    job = evaluated(world, 40, same=20)
    c = start(world, job, plan=PlanName.SMALL, margin=0.2)
    raters = [invite(world, c), invite(world, c, "Ben")]
    while (seen := status(world, c)).comparison.closed_at is None:
        desks = [(r, comparison_rating.desk(world.ctx, r[0].id, r[1]).screen) for r in raters]
        rater = next(r for r, one in desks if one is not None)
        prefer(world, rater, ("One", "Another")[seen.decisive % 2])
    assert seen.comparison.ending in (Ending.ALL_RATED, Ending.PLAN_ENDED)
    with world.ctx.uow() as tx:
        evidence = comparisons.evidence_of(tx, job)
    assert evidence is not None
    assert (evidence.votes.quality, evidence.votes.more) == (Quality.OPEN, None), "no prompt is left for more votes"
    assert evidence.margin is not None
    assert evidence.margin.result is NotWorse.SHOWN


def test_votes_are_exported_after_closing(world: World) -> None:
    c = start(world, evaluated(world))
    rater = invite(world, c)
    prefer(world, rater, "Another")
    vote(world, rater, TIE, note="no difference")
    with pytest.raises(ConflictError, match="after the comparison was closed"):
        export(world.ctx, world.actors["alice"], c.id)
    comparisons.close(world.ctx, world.actors["alice"], c.id)
    first, second = export(world.ctx, world.actors["alice"], c.id)
    assert (first.place, second.place) == (1, 2)
    assert (first.rater, first.outcome, second.outcome, second.note) == ("Ann", "adapter", "tie", "no difference")
    assert (first.choice == "1") == (first.first == "adapter")
    assert first.prompt == blind_votes.order(c)[0] + 1


def test_nothing_goes_on_after_the_owner_is_gone(world: World) -> None:
    root, job = admin(world), evaluated(world)
    rater = invite(world, c := start(world, job))
    cancel(world.ctx, world.actors["alice"], job)
    remove_member(world.ctx, root, "alice")
    with pytest.raises(NotFoundError, match="does not work"):
        comparison_rating.desk(world.ctx, rater[0].id, rater[1])
    assert comparisons.status(world.ctx, root, c.id).ratings == 0
