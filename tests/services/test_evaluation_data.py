"""What the database keeps of evaluations and blind comparisons, and what goes with a job or a member."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from orchestrator.domain.comparisons import BlindComparison, Choice, Ending, PlanName, Rater, Vote
from orchestrator.services import jobs
from orchestrator.services.members import remove_member
from tests.helpers.evaluations import REPORT, add_evaluation, answers_of, stored_answers
from tests.helpers.world import World
from tests.services.test_deletion import delete, trained
from tests.services.test_member_removal import admin

TABLES = ("evaluations", "evaluation_answers", "comparisons", "raters", "votes")


def comparison(job: str, name: str = "comparison-1", **changes: object) -> BlindComparison:
    made = {
        "member_id": "alice",
        "question": "Which is better?",
        "plan": PlanName.STANDARD,
        "margin": None,
        "margin_prompts": 0,
        "key": "e" * 64,
        "prompts": 2,
        "identical": [1],
        "created_at": 1.0,
    }
    return BlindComparison(id=name, job_id=job, **made | changes)  # pyright: ignore[reportArgumentType]


def rater(name: str = "rater-1", link: str | None = "f" * 64) -> Rater:
    return Rater(id=name, comparison_id="comparison-1", name="Ann", created_at=1.0, link_hash=link)


def vote(number: int = 0, choice: Choice = Choice.FIRST, at: float = 1.0, who: str = "rater-1", note: str = "") -> Vote:
    return Vote(comparison_id="comparison-1", number=number, rater_id=who, choice=choice, note=note, at=at)


def counts(engine: Engine) -> list[int]:
    with engine.begin() as connection:
        return [connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() for table in TABLES]


def test_an_evaluation_is_kept_with_its_answers(world: World) -> None:
    """Guard: without `_storable` PostgreSQL refused an answer with a NUL."""
    job, other = world.submit("alice"), world.submit("alice")
    started = add_evaluation(world.ctx.uow, job, trained_job=job)
    with world.ctx.uow() as tx:
        assert tx.evaluations.get(job) == started
        assert (started.report, stored_answers(tx, job)) == (None, [])
    add_evaluation(world.ctx.uow, other, answers=2, trained_job=job, at=2.0, base="a\0b", base_tokens=9)
    with world.ctx.uow() as tx:
        assert [found.job_id for found in tx.evaluations.of_job(job)] == [other, job]
        found = tx.evaluations.get(other)
        assert found is not None
        report = REPORT | {"prompts": 2, "identical": 0}
        assert (found.report, found.finished_at, found.answers_sha256) == (report, 2.0, "b" * 64)
        assert stored_answers(tx, other) == [answers_of(other, n, base="a\ufffdb", base_tokens=9) for n in (0, 1)]
        assert tx.evaluations.answer(other, 1) == answers_of(other, 1, base="a\ufffdb", base_tokens=9)
        assert tx.evaluations.answer(other, 2) is None
        assert tx.evaluations.lengths(other) == {0: (9, 5), 1: (9, 5)}


def test_finishing_again_replaces_the_answers(world: World) -> None:
    job = world.submit("alice")
    evaluation = add_evaluation(world.ctx.uow, job, answers=3)
    with world.ctx.uow() as tx:
        tx.evaluations.finish(evaluation, [answers_of(job, 0)])
        assert stored_answers(tx, job) == [answers_of(job, 0)]


def test_an_evaluation_has_one_open_comparison(world: World) -> None:
    """Guard: without the unique index a second one was added, and votes were split between both."""
    job = world.submit("alice")
    add_evaluation(world.ctx.uow, job, answers=2)
    first, second = comparison(job), comparison(job, "comparison-2")
    with world.ctx.uow() as tx:
        assert tx.comparisons.add(first)
        assert not tx.comparisons.add(second)
        first.closed_at, first.ending = 2.0, Ending.BY_OWNER
        tx.comparisons.save(first)
        assert tx.comparisons.add(second)
        assert tx.comparisons.get_for_update("comparison-1") == first
        assert [found.id for found in tx.comparisons.of_evaluation(job)] == ["comparison-2", "comparison-1"]


def test_raters_and_votes_are_kept(world: World) -> None:
    job = world.submit("alice")
    add_evaluation(world.ctx.uow, job, answers=2)
    ann, ben = rater(), rater("rater-2", None)
    with world.ctx.uow() as tx:
        tx.comparisons.add(comparison(job))
        for each in (ann, ben):
            tx.comparisons.add_rater(each)
        tx.comparisons.put_vote(vote(1, at=2.0, who="rater-2"))
        tx.comparisons.put_vote(vote(0, at=3.0))
        tx.comparisons.put_vote(vote(0, Choice.TIE, at=9.0, note="no difference"))
        ann.link_hash, ann.cookie_hash, ann.opened_at = None, "d" * 64, 2.0
        assert tx.comparisons.rater_by_link("f" * 64) is not None
        tx.comparisons.save_rater(ann)
        assert tx.comparisons.rater_by_link("f" * 64) is None
        assert tx.comparisons.raters("comparison-1") == [ann, ben]
        assert tx.comparisons.rater("rater-1") == tx.comparisons.rater_for_update("rater-1") == ann
        kept = vote(0, Choice.TIE, at=3.0, note="no difference")
        assert tx.comparisons.votes("comparison-1") == [vote(1, at=2.0, who="rater-2"), kept]


@pytest.mark.parametrize("is_evaluation", [True, False])
def test_a_deleted_job_takes_its_evaluation_along(world: World, engine: Engine, *, is_evaluation: bool) -> None:
    """Guards: without `delete_evaluation` the answers stayed. An evaluation outlives the job that it evaluates."""
    job, other = trained(world), world.submit("bob")
    evaluation = job if is_evaluation else other
    add_evaluation(world.ctx.uow, evaluation, answers=2, trained_job=job, owner="bob")
    with world.ctx.uow() as tx:
        tx.comparisons.add(comparison(evaluation))
        tx.comparisons.add_rater(rater())
        tx.comparisons.put_vote(vote())
    delete(world, job)
    assert counts(engine) == ([0, 0, 0, 0, 0] if is_evaluation else [1, 2, 1, 1, 1])


def test_links_of_a_removed_member_stop_working(world: World) -> None:
    """Guard: without `revoke_raters` the raters went on, and nobody could have closed the comparison."""
    root, job = admin(world), world.submit("alice")
    add_evaluation(world.ctx.uow, job, answers=2)
    with world.ctx.uow() as tx:
        tx.comparisons.add(comparison(job))
        tx.comparisons.add_rater(rater())
        tx.comparisons.put_vote(vote())
    jobs.cancel(world.ctx, world.actors["alice"], job)
    remove_member(world.ctx, root, "alice")
    with world.ctx.uow() as tx:
        (left,) = tx.comparisons.raters("comparison-1")
        assert (left.link_hash, left.cookie_hash, left.revoked_at) == (None, None, world.clock.now())
        assert tx.comparisons.votes("comparison-1") == [vote()]
