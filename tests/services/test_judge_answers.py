"""What a judge model may answer: it is busy, slow, refuses, repeats itself, or says nothing of use."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace

import pytest

from orchestrator.domain.accounts import Role
from orchestrator.domain.choices import MAX_BUDGET
from orchestrator.domain.errors import ConflictError, InvalidError, NotFoundError
from orchestrator.domain.judgements import JudgementState
from orchestrator.services import judge_endpoints, judgements
from orchestrator.services.judging import MAX_FRUITLESS, MAX_WAIT_S, REQUESTS_AT_ONCE, work
from tests.emulators.judge import Fault, JudgeEmulator, always, prefer
from tests.helpers.judging import Bench
from tests.helpers.world import World

RUNNING, PAUSED, DONE = JudgementState.RUNNING, JudgementState.PAUSED, JudgementState.DONE


@pytest.fixture
def bench(world1: World, judge: JudgeEmulator) -> Bench:
    return Bench.of(world1, judge)


def sent_once(judge: JudgeEmulator) -> bool:
    return set(Counter(seen.pair for seen in judge.compared).values()) == {1}


@pytest.mark.parametrize("tokens", [0, -1, MAX_BUDGET + 1])
def test_a_budget_has_bounds(bench: Bench, tokens: int) -> None:
    bench.add()
    with pytest.raises(InvalidError, match="The budget must be from 1"):
        bench.start(bench.evaluated(), max_tokens=tokens)


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [("7", 7.0), ("0", 1.0), ("99999999", MAX_WAIT_S), ("soon", 5.0), (None, 5.0), ("-3", 5.0)],
)
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_endpoint_is_left_alone(bench: Bench, judge: JudgeEmulator, header, wait_s, status) -> None:
    """Guards: without the bounds in `_wait`, 0 meant at once and 99999999 for ever."""
    bench.add()
    headers = {"Retry-After": header} if header else {}
    judge.faults = [Fault(status=status, headers=headers) for _ in range(REQUESTS_AT_ONCE)]
    found = bench.judged(bench.evaluated(4))
    assert (found.judgement.state, found.answered, found.judgement.used_tokens) == (RUNNING, 0, 0)
    assert found.judgement.not_before == bench.world.clock.now() + wait_s
    assert f"({status})" in found.judgement.reason
    bench.world.clock.tick(wait_s - 0.5)
    work(bench.context, found.judgement.id)
    assert len(judge.compared) == REQUESTS_AT_ONCE
    bench.world.clock.tick(0.5)
    work(bench.context, found.judgement.id)
    done = bench.report(found.judgement)
    assert (done.judgement.state, done.judgement.reason, done.conduct.failed) == (DONE, "", 0)


def test_an_endpoint_that_stays_busy_pauses_it(bench: Bench, judge: JudgeEmulator) -> None:
    """Guard: without `MAX_FRUITLESS` it was called for ever."""
    bench.add()
    judge.lasting = Fault(status=500)
    judgement = bench.start(bench.evaluated(8))
    for _ in range(20):
        work(bench.context, judgement.id)
        bench.world.clock.tick(MAX_WAIT_S)
    found = bench.report(judgement)
    assert (found.judgement.state, found.answered) == (PAUSED, 0)
    assert found.judgement.reason.startswith(
        "5 attempts in a row had no verdict. The endpoint has a problem of its own"
    )
    assert len(judge.compared) == MAX_FRUITLESS * REQUESTS_AT_ONCE
    judge.lasting = None
    assert bench.resume(judgement).judgement.state is DONE


def test_prose_is_a_failure_and_never_a_verdict(bench: Bench, judge: JudgeEmulator) -> None:
    """Guards: with a word searched for in the text, prose was a verdict. Without `MAX_FRUITLESS` it was paid for."""
    bench.add()
    judge.conduct = always("The first one is better, because it is longer.")
    found = bench.judged(bench.evaluated(30))
    assert (found.judgement.state, found.conduct.pairs, found.conduct.failed) == (PAUSED, 0, 10)
    assert found.failures == {"The judge answered without a verdict.": 20}
    assert found.advice == "ask people"
    assert all(one.verdict is None for one in bench.answers(found.judgement))
    judge.conduct = prefer("Another")
    done = bench.resume(found.judgement)
    assert (done.judgement.state, done.conduct.pairs, done.conduct.failed) == (DONE, 20, 10)
    assert done.result is not None
    assert done.result.wins == 20
    assert sent_once(judge)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(status=401), "The endpoint does not accept the key (401)."),
        (Fault(status=403), "The endpoint does not accept the key (403)."),
        (Fault(status=404), "There is no such model at this address"),
        (Fault(status=307, headers={"Location": "http://127.0.0.1:9/"}), "redirects to another address"),
    ],
)
def test_what_only_a_person_can_mend_stops_it_at_once(bench: Bench, judge: JudgeEmulator, fault, words) -> None:
    """Guard: with `Remedy.RETRY` for a wrong key it was tried five times."""
    bench.add()
    judge.lasting = fault
    found = bench.judged(bench.evaluated(8))
    assert found.judgement.state is PAUSED
    assert words in found.judgement.reason
    assert (len(judge.compared), found.answered, found.judgement.used_tokens) == (REQUESTS_AT_ONCE, 0, 0)


@pytest.mark.parametrize(
    ("fault", "is_stored", "costs"),
    [
        (Fault(body=b""), False, True),
        (Fault(body=b"[1, 2"), False, True),
        (Fault(body=b'{"choices": []}'), False, True),
        (Fault(body=b"[" * 100_000), False, True),
        (Fault(body=b"<html>", kind="text/html"), False, True),
        (Fault(body=b"{}", headers={"Content-Encoding": "gzip"}), False, True),
        (Fault(cut=True), False, True),
        (Fault(body=b'{"choices": [{"message": {"content": null}}]}'), True, True),
        (Fault(body=b'{"choices": [{"message": {"content": "' + b"x" * 300_000 + b'"}}]}'), True, True),
        (Fault(status=400), True, False),
    ],
)
def test_a_bad_answer_is_no_verdict(bench: Bench, judge: JudgeEmulator, fault, is_stored, costs) -> None:
    """Tokens that may have been counted are counted. Guard: without `may_cost` the broken ones were free."""
    bench.add()
    judge.faults = [fault]
    judgement = bench.start(bench.evaluated(2))
    work(bench.context, judgement.id)
    bench.world.clock.tick(60)
    work(bench.context, judgement.id)
    found = bench.report(judgement)
    assert (found.judgement.state, found.answered) == (DONE, 4)
    assert (found.conduct.failed, sum(found.failures.values())) == ((1, 1) if is_stored else (0, 0))
    good = [one.tokens for one in bench.answers(judgement) if one.verdict is not None]
    assert (found.judgement.used_tokens > sum(good)) == costs


def test_a_huge_answer_is_not_read_to_its_end(bench: Bench, judge: JudgeEmulator) -> None:
    """Guard: without `MAX_BYTES` the whole answer was kept in memory, and the failure had another name."""
    bench.add()
    judge.faults = [Fault(body=b'{"choices": [{"message": {"content": "' + b"x" * 8_000_000 + b'"}}]}')]
    found = bench.judged(bench.evaluated(2))
    assert found.failures == {"An answer is larger than 256 KiB.": 1}


@pytest.mark.parametrize("fault", [Fault(hold=threading.Event()), Fault(drip_s=0.05)])
def test_a_slow_answer_ends_at_the_time_limit(bench: Bench, judge: JudgeEmulator, fault: Fault) -> None:
    """Guard: without `_Deadline` a header that arrived byte by byte kept its thread for minutes."""
    bench.add()
    bench.limit(1.5)
    judge.faults = [fault]
    found = bench.judged(bench.evaluated(1))
    assert found.answered == 1
    assert "within the time limit" in found.judgement.reason


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 10**30, "completion_tokens": 1},
        {"prompt_tokens": -5, "completion_tokens": 1},
        {"prompt_tokens": True, "completion_tokens": "many"},
        {"total_tokens": 3},
        "none",
        [],
    ],
)
def test_counts_that_cannot_be_true_are_estimated(bench: Bench, judge: JudgeEmulator, usage) -> None:
    """Guard: without `MAX_COUNTED` a count was too large for the database, and a negative one raised the budget."""
    bench.add()
    judge.usage = lambda _: usage
    found = bench.judged(bench.evaluated(2))
    assert (found.judgement.state, found.estimated) == (DONE, 4)
    assert 400 < found.judgement.used_tokens < 4_000


def test_a_member_who_loses_their_role_sends_nothing_inside(bench: Bench, judge: JudgeEmulator) -> None:
    """Guard: with the role looked at only when the endpoint was added, the answers were sent."""
    bench.add()
    judgement = bench.start(bench.evaluated())
    with bench.world.ctx.uow() as tx:
        member = tx.members.get("alice")
        assert member is not None
        tx.members.save(replace(member, role=Role.MEMBER))
    work(bench.context, judgement.id)
    assert "in the server's own network" in bench.report(judgement).judgement.reason
    assert judge.compared == []


def test_an_endpoint_that_was_removed_stops_its_judgements(bench: Bench, judge: JudgeEmulator) -> None:
    endpoint = bench.add()
    judgement = bench.start(bench.evaluated())
    judge_endpoints.remove(bench.context.ctx, bench.actor, endpoint.id)
    work(bench.context, judgement.id)
    found = bench.report(judgement).judgement
    assert (found.state, found.reason) == (PAUSED, "Its judge endpoint was removed.")
    with pytest.raises(ConflictError, match="Start another judgement"):
        judgements.resume(bench.context.ctx, bench.actor, judgement.id)
    assert judge.compared == []


def test_what_cannot_be_judged_is_refused(bench: Bench) -> None:
    bench.add()
    with pytest.raises(ConflictError, match="no answers yet"):
        bench.start(bench.evaluated(0))
    with pytest.raises(InvalidError, match="identical"):
        bench.start(bench.evaluated(4, same=4))
    with pytest.raises(NotFoundError, match="no judge endpoint elsewhere"):
        bench.start(bench.evaluated(), "elsewhere")


def test_a_server_that_stops_finishes_the_requests_under_way(bench: Bench, judge: JudgeEmulator) -> None:
    bench.add()
    judgement = bench.start(bench.evaluated(30))
    judge.before = lambda _: bench.context.running.stopping.set()
    work(bench.context, judgement.id)
    found = bench.report(judgement)
    assert (found.judgement.state, found.answered, found.judgement.reserved_tokens) == (RUNNING, REQUESTS_AT_ONCE, 0)
