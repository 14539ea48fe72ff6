"""Judgements at work: what is sent, what is stored, what stops them, and that nothing is sent twice."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace

import pytest
from sqlalchemy import Engine

from orchestrator.adapters.database.instance import count_sealed
from orchestrator.domain.accounts import Role
from orchestrator.domain.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError
from orchestrator.domain.judgements import JudgeAnswer, JudgementState
from orchestrator.services import judge_endpoints, judgements
from orchestrator.services.copied_folder import leave_to_the_original
from orchestrator.services.jobs import cancel, delete
from orchestrator.services.judging import REQUESTS_AT_ONCE, judge_due, work
from orchestrator.services.members import remove_member
from tests.emulators.judge import Fault, JudgeEmulator
from tests.helpers.evaluations import add_evaluation
from tests.helpers.judging import KEY, Bench
from tests.helpers.waiting import wait_for
from tests.helpers.world import World
from tests.services.test_dataset_deletion import meanwhile
from tests.services.test_member_removal import admin

RUNNING, PAUSED, DONE = JudgementState.RUNNING, JudgementState.PAUSED, JudgementState.DONE
SPENT = JudgementState.BUDGET_SPENT


@pytest.fixture
def bench(world: World, judge: JudgeEmulator) -> Bench:
    return Bench.of(world, judge)


def sent_once(judge: JudgeEmulator) -> bool:
    return set(Counter(seen.pair for seen in judge.compared).values()) == {1}


def test_each_pair_is_sent_in_both_orders(bench: Bench, judge: JudgeEmulator) -> None:
    """Guards: with one order only, a pair was incomplete. With `ask` in a transaction, `Watch.check` failed."""
    bench.add()
    found = bench.judged(bench.evaluated(6, same=2))
    assert (found.judgement.state, found.answered, found.judgement.requests) == (DONE, 8, 8)
    assert found.judgement.identical == [0, 1]
    texts = {(f"Another text about {n}.", f"One text about {n}.") for n in range(2, 6)}
    assert {seen.pair for seen in judge.compared} == texts | {(b, a) for a, b in texts}
    for seen in judge.compared:
        assert (seen.body["temperature"], seen.body["model"], seen.authorization) == (0, "judge-1", f"Bearer {KEY}")
        assert "adapter" not in str(seen.body)
    assert (found.conduct.pairs, found.conduct.failed, found.conduct.inconsistent.value) == (4, 0, 0.0)
    spent = sum(answer.tokens for answer in bench.answers(found.judgement))
    assert found.judgement.used_tokens == spent > 0
    assert found.judgement.reserved_tokens == found.estimated == 0
    work(bench.context, found.judgement.id)
    assert sent_once(judge)


def test_nothing_is_sent_without_consent(bench: Bench, judge: JudgeEmulator) -> None:
    """Guards: without `_agreed` in `start`, or the look at `consented_at` in `_batch`, the answers were sent."""
    endpoint = bench.add(consent=False)
    assert (endpoint.consented_at, endpoint.consented_by) == (None, "")
    job = bench.evaluated()
    with pytest.raises(ConflictError, match="You have not agreed that prompts and answers are sent"):
        bench.start(job)
    agreed = judge_endpoints.consent(bench.context.ctx, bench.actor, endpoint.id)
    assert (agreed.consented_at, agreed.consented_by) == (bench.world.clock.now(), "alice")
    judgement = bench.start(job)
    with bench.context.ctx.uow() as tx:
        tx.judge_endpoints.save(replace(agreed, consented_at=None))
    work(bench.context, judgement.id)
    assert bench.report(judgement).judgement.reason.startswith("There is no consent")
    assert judge.compared == []
    with pytest.raises(ConflictError, match="You have not agreed"):
        judgements.resume(bench.context.ctx, bench.actor, judgement.id)


def test_a_budget_stops_it_and_a_higher_one_resumes_it(bench: Bench, judge: JudgeEmulator) -> None:
    """Guard: without the comparison with `left` in `_batch` the budget was passed."""
    bench.add()
    job = bench.evaluated(10)
    judge.usage = None
    found = bench.judged(job, max_tokens=2_000)
    assert (found.judgement.state, found.advice) == (SPENT, "ask people")
    assert 0 < found.answered < 20
    assert found.estimated == found.answered
    assert found.judgement.used_tokens <= 2_000
    assert "tokens, and" in found.judgement.reason
    with pytest.raises(InvalidError, match="tokens are used already"):
        bench.resume(found.judgement, found.judgement.used_tokens)
    again = bench.resume(found.judgement)
    assert (again.judgement.state, again.answered) == (SPENT, found.answered)
    done = bench.resume(found.judgement, 100_000)
    assert (done.judgement.state, done.answered) == (DONE, 20)
    assert sent_once(judge)
    with pytest.raises(ConflictError, match="is done"):
        judgements.resume(bench.context.ctx, bench.actor, done.judgement.id)


class KilledError(Exception):
    """The server died here."""


@pytest.mark.parametrize("alive", [1, 3, 8, 21])
def test_a_killed_server_sends_no_stored_request_again(bench: Bench, judge: JudgeEmulator, alive: int) -> None:
    """Guards: with answers kept until the end of a batch, or `_questions` without `stored`, pairs were sent twice.

    Requests that were under way count as used: without `reserved_tokens` they cost nothing.
    """
    bench.add()
    judgement = bench.start(bench.evaluated(8))
    turns = iter(range(alive))

    def die() -> None:
        if next(turns, None) is None:
            raise KilledError

    bench.world.watch.between = die
    with pytest.raises(KilledError):
        work(bench.context, judgement.id)
    bench.world.watch.between = lambda: None
    stored = {(one.number, one.adapter_first) for one in bench.answers(judgement)}
    before, cut = bench.report(judgement).judgement, len(judge.compared)
    bench.restart()
    work(bench.context, judgement.id)
    found = bench.report(judgement)
    assert (found.judgement.state, found.answered, found.conduct.pairs) == (DONE, 16, 8)
    assert cut - len(stored) <= REQUESTS_AT_ONCE
    twice = [pair for pair, times in Counter(seen.pair for seen in judge.compared).items() if times > 1]
    assert len(twice) == cut - len(stored)
    counted = sum(one.tokens for one in bench.answers(judgement))
    assert found.judgement.used_tokens == counted + before.reserved_tokens


def test_a_removed_members_keys_are_deleted(bench: Bench, judge: JudgeEmulator) -> None:
    """Guard: without `remove_endpoints` the key stayed, and the judgement sent answers for nobody."""
    bench.add()
    job = bench.evaluated()
    judgement = bench.start(job)
    cancel(bench.context.ctx, bench.actor, job)
    remove_member(bench.context.ctx, admin(bench.world), "alice")
    with bench.context.ctx.uow() as tx:
        assert tx.judge_endpoints.of_member("alice") == []
        left = tx.judgements.get(judgement.id)
    assert left is not None
    assert (left.state, "was removed" in left.reason) == (PAUSED, True)
    work(bench.context, judgement.id)
    assert judge.compared == []


def test_an_evaluation_is_deleted_while_an_answer_is_stored(bench: Bench, engine: Engine) -> None:
    """Guard: without the lock in `delete_judgements` PostgreSQL refused the deletion, because it had not seen the
    answer."""
    bench.add()
    job = bench.evaluated()
    judgement = bench.start(job)
    cancel(bench.context.ctx, bench.actor, job)
    failed: list[Exception] = []

    def deleting() -> None:
        try:
            delete(bench.context.ctx, bench.actor, job)
        except Exception as error:  # noqa: BLE001  shown below
            failed.append(error)

    given = {"verdict": None, "failure": "none", "tokens": 1, "is_estimated": False, "at": 1.0}
    with bench.context.ctx.uow() as tx:
        assert tx.judgements.get_for_update(judgement.id) is not None
        tx.judgements.add_answer(JudgeAnswer(judgement_id=judgement.id, number=0, adapter_first=True, **given))
        thread = meanwhile(engine, deleting)
    thread.join()
    assert failed == []
    assert bench.answers(judgement) == []
    with pytest.raises(NotFoundError):
        bench.report(judgement)


def test_a_copied_folder_leaves_judgements_to_the_original(bench: Bench, judge: JudgeEmulator) -> None:
    """Guard: without its lines in `copied_folder` both servers paid for the same verdicts."""
    bench.add()
    judgement = bench.start(bench.evaluated())
    leave_to_the_original(bench.context.ctx)
    work(bench.context, judgement.id)
    assert "belongs to the original server" in bench.report(judgement).judgement.reason
    assert judge.compared == []


def test_one_judgement_of_an_evaluation_runs_at_a_time(bench: Bench) -> None:
    """Guard: without the unique index two judges paid at once, and the second budget was not the owner's."""
    bench.add()
    job = bench.evaluated()
    first = bench.start(job)
    with pytest.raises(ConflictError, match="Another judgement of this evaluation is running"):
        bench.start(job)
    judgements.pause(bench.context.ctx, bench.actor, first.id)
    assert bench.report(first).judgement.reason == "Paused by alice."
    second = bench.start(job)
    with pytest.raises(ConflictError, match="Another judgement of this evaluation is running"):
        judgements.resume(bench.context.ctx, bench.actor, first.id)
    work(bench.context, first.id)
    assert bench.report(first).answered == 0
    work(bench.context, second.id)
    with pytest.raises(ConflictError, match="is done"):
        judgements.pause(bench.context.ctx, bench.actor, second.id)


def test_answers_of_others_are_sent_by_nobody(bench: Bench) -> None:
    """Guard: without the look at the owner an admin sent Bob's answers to an endpoint of her own."""
    bench.add()
    job = bench.world.submit("bob")
    add_evaluation(bench.context.ctx.uow, job, 30, owner="bob")
    with pytest.raises(ForbiddenError, match="Only its owner"):
        bench.start(job)
    with pytest.raises(NotFoundError):
        judgements.start(bench.context.ctx, bench.world.actors["bob"], job, "house")
    mine = bench.evaluated()
    with pytest.raises(NotFoundError):
        judgements.start(bench.context.ctx, bench.world.actors["bob"], mine, "house")


def test_a_slow_judge_holds_up_nobody_else(bench: Bench, judge: JudgeEmulator) -> None:
    """Guard: with `work` called in the round itself, the other member's judgement waited for the slow one."""
    bench.add()
    world, hold = bench.world, threading.Event()
    slow = bench.start(bench.evaluated(1))
    with world.ctx.uow() as tx:
        member = tx.members.get("bob")
        assert member is not None
        tx.members.save(replace(member, role=Role.ADMIN))
    bob = replace(bench, actor=replace(world.actors["bob"], role=Role.ADMIN))
    bob.add()
    job = world.submit("bob")
    add_evaluation(world.ctx.uow, job, 3, owner="bob", base="One text of Bob.")
    quick = bob.start(job)
    judge.before = lambda seen: None if "Bob" in str(seen.asked) else hold.wait(60)
    with world.ctx.uow() as tx:
        assert {found.id for found in tx.judgements.running()} == {slow.id, quick.id}
    judge_due(bench.context)
    wait_for(lambda: bob.report(quick).judgement.state is DONE, "the other judgement")
    assert bench.report(slow).judgement.state is RUNNING
    hold.set()
    wait_for(lambda: bench.report(slow).judgement.state is DONE, "the slow judgement")


def test_judgements_of_one_member_take_turns(bench: Bench, judge: JudgeEmulator) -> None:
    """Guard: with calls by judgement, the first one continued beside the second one after it had waited."""
    bench.add()
    first, second = bench.start(bench.evaluated(2)), bench.start(bench.evaluated(1, base="One text of the second."))
    judge.faults = [Fault(status=429, headers={"Retry-After": "9"}) for _ in range(REQUESTS_AT_ONCE)]
    work(bench.context, first.id)
    hold = threading.Event()
    judge.before = lambda _: hold.wait(60)
    judge_due(bench.context)
    wait_for(lambda: len(judge.compared) == REQUESTS_AT_ONCE + 2, "the second judgement")
    bench.world.clock.tick(10)
    judge_due(bench.context)
    calls = [thread.name for thread in threading.enumerate() if thread.name.startswith("aside-")]
    hold.set()
    wait_for(lambda: bench.report(second).judgement.state is DONE, "the second judgement")
    assert calls == ["aside-alice"]
    assert (bench.report(first).judgement.state, len(judge.compared)) == (RUNNING, REQUESTS_AT_ONCE + 2)


def test_a_clock_that_jumps_and_a_lost_vault_key(bench: Bench, judge: JudgeEmulator, engine: Engine) -> None:
    """Guards: without its line in `_COMPARED` a judgement waited for a year; without the one in `_SEALED` a server
    started without the key of its vault, and no judge could be called."""
    assert count_sealed(engine) == 2  # of both accounts
    bench.add()
    assert count_sealed(engine) == 3
    judge.faults = [Fault(status=429, headers={"Retry-After": "60"}) for _ in range(REQUESTS_AT_ONCE)]
    found = bench.judged(bench.evaluated(4)).judgement
    with bench.context.ctx.uow() as tx:
        tx.times.shift(-1_000.0)
    assert bench.report(found).judgement.not_before == found.not_before - 1_000.0
