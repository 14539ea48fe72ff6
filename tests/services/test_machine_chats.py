"""Chats in sessions on machines, the server's part: who may start and ask, what waits for what, and that nothing of a
conversation is stored; on both databases."""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from orchestrator.adapters.chats import ServerChats
from orchestrator.adapters.database.tables import metadata
from orchestrator.domain.errors import ConflictError, InvalidError, NotFoundError, StaleFenceError
from orchestrator.domain.lifecycle import JobState
from orchestrator.services import chats, clones, dispatch, evaluations, jobs, machine_chats, shares
from orchestrator.services.chat_rooms import LOST, MAX_ANSWER_CHARACTERS, MAX_ROOMS, ChatRooms
from orchestrator.services.reconcile import reconcile
from tests.helpers.offline_world import OfflineWorld
from tests.helpers.world import Worker, World
from tests.services.test_evaluations import running, trained
from worker.shared.chat import AnswerEvent, ChatEvent, ChatReply, ChatTask, Kind, Question
from worker.shared.chat_limits import MAX_TEXT
from worker.shared.evaluation_spec import EvaluationSpec
from worker.shared.evaluation_units import Arm
from worker.shared.job_spec import JobSpec
from worker.shared.messages import Finish, GrantKind, Phase, Report

HELLO = Question(question="canary: who are you?")
DONE = AnswerEvent(kind=Kind.DONE)


def started(world: World, job: str, who: str = "alice", minutes: int = 20) -> str:
    return machine_chats.start(world.ctx, world.actors[who], job, minutes).job.id


def context(world: World) -> chats.ChatContext:
    return chats.ChatContext(ctx=world.ctx, chats=ServerChats(), running=chats.RunningChats(), rooms=ChatRooms())


class Asked:
    """A question whose events arrive on a thread of their own, as the server does it."""

    def __init__(self, made: chats.ChatContext, world: World, job: str, question: Question = HELLO) -> None:
        self._pending = chats.ask(made, world.actors["alice"], job, question, on_machine=True)
        self._events: queue.SimpleQueue[ChatEvent | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for event in self._pending.answer():
                self._events.put(event)
        finally:
            self._pending.end()
            self._events.put(None)

    def next(self) -> ChatEvent | None:
        """The next event, None at the end."""
        return self._events.get(timeout=20)

    def rest(self) -> list[ChatEvent]:
        return list(iter(self.next, None))

    def stop(self) -> None:
        self._pending.cancelled.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


class Session:
    """What `worker.chat.session` says to its server."""

    def __init__(self, made: chats.ChatContext, worker: Worker) -> None:
        assert worker.assignment is not None
        self._made, self._worker, self.fence, self.sent = made, worker, worker.assignment.fence, 0

    def call(self, **said: Any) -> ChatTask:
        reply = ChatReply(fence=self.fence, **said)
        return machine_chats.exchange(self._made.ctx, self._made.rooms, self._worker.lease, reply)

    def take(self) -> int:
        """The number of the question that waits."""
        task = self.call()
        assert task.number is not None
        assert task.question is not None
        self.sent = 0
        return task.number

    def say(self, number: int, *events: AnswerEvent) -> ChatTask:
        task = self.call(question=number, first=self.sent, events=events)
        self.sent += len(events)
        return task

    def phase(self, phase: Phase) -> None:
        self._worker.send(Report(**self._worker._said(), step=0, phase=phase))

    def end(self) -> None:
        message = Finish(**self._worker._said(), step=1)
        self._worker.last = lambda: self._worker.send(message)
        self._worker.send(message)
        self._worker.world.machines.end(self._worker.lease)


def text(words: str, arm: Arm = Arm.BASE) -> AnswerEvent:
    return AnswerEvent(kind=Kind.TEXT, arm=arm, text=words)


def in_database(world: World) -> str:
    with world.ctx.uow() as tx:
        connection: Any = tx.connection  # type: ignore[attr-defined]
        return "".join(repr(connection.execute(table.select()).all()) for table in metadata.sorted_tables)


def test_a_session_is_a_job_and_keeps_nothing_of_its_answers(world: World) -> None:
    """Guard: without `why_waiting` in `_doing`, who asked did not learn what to do about a session that waits."""
    job = trained(world)
    source, made = world.job(job), context(world)
    assert "chat" not in source.spec, "older workers refuse a key that they do not know"
    world.set_consent("alice", agreed=False)
    session_job = started(world, job)
    assert started(world, job) == session_job, "while there is a session, it is that one"
    queued = world.job(session_job)
    assert (queued.cloned_from, queued.total_steps, queued.head, queued.member_id) == (job, 1, None, "alice")
    assert (queued.gpu_bytes, queued.host_bytes) == (source.gpu_bytes, source.host_bytes)
    asked = Asked(made, world, job)
    waits = asked.next()
    assert waits is not None
    assert waits.kind is Kind.LOADING
    assert waits.text.startswith("waiting for a machine: alice's: waiting for its owner's consent")
    world.set_consent("alice", agreed=True)
    worker = running(world)
    assert worker.assignment is not None
    (request,) = [each for each in world.machines.launched if each.lease_id == worker.lease]
    assert (request.chats, request.exports) == (True, False)
    (adapter,) = worker.assignment.datasets
    assert (adapter.kind, adapter.sha256) == (GrantKind.ADAPTER, source.adapter_zip_sha256)
    assert (worker.assignment.resume, worker.assignment.seconds_left) == (None, 1200.0)
    session = Session(made, worker)
    session.phase(Phase.LOAD)
    world.clock.tick(3)
    assert asked.next() == ChatEvent(kind=Kind.LOADING, text="the machine is loading the models")
    number = session.take()
    session.phase(Phase.EVAL)
    assert session.say(number, AnswerEvent(kind=Kind.READY, text="tiny on CPU"), text("canary one")) == ChatTask()
    assert asked.next() == ChatEvent(kind=Kind.READY, text="tiny on CPU")
    assert asked.next() == ChatEvent(kind=Kind.TEXT, arm=Arm.BASE, text="canary one")
    session.say(number, text("canary two", Arm.ADAPTER), AnswerEvent(kind=Kind.END, arm=Arm.BASE, tokens=3), DONE)
    assert [event.kind for event in asked.rest()] == [Kind.TEXT, Kind.END, Kind.DONE]
    assert session.call() == ChatTask(), "a question is taken once"
    assert len(made.rooms) == 0
    assert "canary" not in in_database(world)
    assert not [path for path in world.folder.rglob("*") if path.is_file() and b"canary" in path.read_bytes()]
    session.end()
    worker.last()  # a repeated message changes nothing
    done = world.job(session_job)
    assert (done.state, done.head_step, done.adapter_key) == (JobState.SUCCEEDED, 1, None)
    with pytest.raises(ConflictError, match="No session for chats"):
        Asked(made, world, job)
    with pytest.raises(StaleFenceError):
        session.call()
    assert started(world, job) != session_job


def test_who_may_start_and_ask_and_what_refuses(world: World) -> None:
    """Guards: with exports alone in `refuse_unfinished` and `refuse_without_adapter`, the adapter of a waiting session
    was deleted, and a session without an adapter was queued; without `_unended` a second machine was taken."""
    alice, made = world.actors["alice"], context(world)
    unfinished = world.submit("alice", 4)
    with pytest.raises(ConflictError, match="has no adapter to chat with"):
        started(world, unfinished)
    jobs.cancel(world.ctx, alice, unfinished)
    job = trained(world)
    reconcile(world.ctx)
    with pytest.raises(NotFoundError):
        started(world, job, who="bob")
    for minutes in (0, 4, 121):
        with pytest.raises(InvalidError, match="from 5 to 120"):
            started(world, job, minutes=minutes)
    with pytest.raises(ConflictError, match="No session for chats"):
        Asked(made, world, job)
    session = started(world, job)
    with pytest.raises(InvalidError, match="Choose one of"):
        chats.ask(made, alice, job, HELLO, chats.Endpoint(url="http://127.0.0.1:1/v1"), on_machine=True)
    with pytest.raises(ConflictError, match="is a chat"):
        evaluations.evaluate(world.ctx, alice, session, EvaluationSpec())
    with pytest.raises(ConflictError, match="is a chat"):
        shares.create(world.ctx, alice, session)
    with pytest.raises(InvalidError, match="A chat is started from a trained job"):
        clones.clone(world.ctx, alice, session, {})
    with pytest.raises(InvalidError, match="A chat is started from a trained job"):
        jobs.submit(world.ctx, alice, JobSpec.model_validate(world.job(session).spec))
    with pytest.raises(ConflictError, match="has no adapter"):
        started(world, session)
    with pytest.raises(ConflictError, match=f"Job {session} is a chat with the adapter of job {job}"):
        jobs.delete(world.ctx, alice, job)
    jobs.cancel(world.ctx, alice, session)
    jobs.delete(world.ctx, alice, job)
    with pytest.raises(ConflictError, match="was deleted, so it cannot answer again"):
        jobs.retry(world.ctx, alice, session)


def test_a_session_of_an_old_fence_answers_nothing(world: World) -> None:
    """Guards: without `held` in `exchange` the lost session went on to answer; without the fences in `_Room` the next
    one answered from the middle of a text."""
    made = context(world)
    job = trained(world)
    started(world, job)
    first = Session(made, running(world))
    asked = Asked(made, world, job)
    assert asked.next() is not None  # what the machine does
    number = first.take()
    first.say(number, text("half an ans"))
    assert asked.next() == ChatEvent(kind=Kind.TEXT, arm=Arm.BASE, text="half an ans")
    first._worker.release("drained")
    second = Session(made, running(world))
    assert second.fence > first.fence
    with pytest.raises(StaleFenceError):
        first.say(number, text("wer"))
    assert second.call() == ChatTask()
    assert asked.rest() == [LOST]
    again = Asked(made, world, job)
    other = second.take()
    second.say(other, text("whole"), DONE)
    assert [event.kind for event in again.rest() if event.kind is not Kind.LOADING] == [Kind.TEXT, Kind.DONE]


def test_the_end_of_a_session_ends_the_question(world1: World) -> None:
    """Guard: without the look at the session's job a question to a machine that is gone waited for half an hour."""
    alice, made = world1.actors["alice"], context(world1)
    job = trained(world1)
    session_job = started(world1, job)
    session = Session(made, running(world1))
    asked = Asked(made, world1, job)
    assert asked.next() is not None
    number = session.take()
    jobs.cancel(world1.ctx, alice, session_job)
    session.say(number, text("last"))
    world1.clock.tick(3)
    found = asked.rest()
    assert [event.text for event in found] == ["last", "The session is being ended. Start another one."]
    session._worker.release("cancelled")
    assert world1.job(session_job).state is JobState.CANCELLED
    paused = started(world1, job)
    asked = Asked(made, world1, job)
    jobs.pause(world1.ctx, alice, paused)
    world1.clock.tick(3)
    assert asked.rest()[-1].text == f"The session is paused. Resume job {paused}, then ask again."
    with pytest.raises(ConflictError, match="is paused"):
        Asked(made, world1, job)
    jobs.resume(world1.ctx, alice, paused)
    asked = Asked(made, world1, job)
    assert asked.next() is not None
    world1.clock.tick(machine_chats.MAX_WAIT_S + 1)
    assert asked.rest()[-1].text == "The machine took too long; ask again."


def test_who_waits_learns_that_the_machine_was_lost(world1: World) -> None:
    """Guard: without `is_lost` the question waited for its half answer, and the next session never got it."""
    made = context(world1)
    job = trained(world1)
    started(world1, job)
    session = Session(made, running(world1))
    asked = Asked(made, world1, job)
    assert asked.next() is not None
    session.say(session.take(), text("half an ans"))
    assert asked.next() == ChatEvent(kind=Kind.TEXT, arm=Arm.BASE, text="half an ans")
    session._worker.release("drained")
    world1.clock.tick(3)
    assert asked.rest() == [LOST]
    Asked(made, world1, job).stop()


def test_nobody_is_answered_who_has_left(world1: World) -> None:
    """Guard: without `drop` the session generated for nobody and no further question was taken."""
    made = context(world1)
    job = trained(world1)
    started(world1, job)
    session = Session(made, running(world1))
    asked = Asked(made, world1, job)
    assert asked.next() is not None
    with pytest.raises(ConflictError, match="Another question of yours"):
        Asked(made, world1, job)
    number = session.take()
    asked.stop()
    assert session.say(number, text("for nobody")).is_cancelled
    again = Asked(made, world1, job)
    assert again.next() is not None
    assert session.take() > number
    made.running.cancel()  # the server stops
    assert again.rest() == []


def test_a_machine_that_cannot_call_gets_no_session(engine: Engine, tmp_path: Path) -> None:
    """Guard: with `needs_calls` left out of `to_pending` a machine without an address waited for questions."""
    world = OfflineWorld(engine, tmp_path)
    job = world.submit("alice", 2)
    worker = running(world)
    worker.step = 2
    worker.save()
    worker.finish()
    reconcile(world.ctx)
    assert world.job(job).state is JobState.SUCCEEDED
    session = started(world, job)
    assert dispatch.dispatch(world.ctx) == 0
    waits = dispatch.why_waiting(world.ctx, session)
    assert waits is not None
    assert waits.reason == "machines of alice's cannot call this server; set TRAINHOP_PUBLIC_URL"


def test_only_a_chat_takes_questions_and_only_it_ends_with_nothing(world1: World) -> None:
    made = context(world1)
    job = world1.submit("alice", 2)
    worker = running(world1)
    with pytest.raises(ConflictError, match="is not a chat"):
        Session(made, worker).call()
    worker.step = 2
    assert worker.save().committed
    with pytest.raises(InvalidError, match="The adapter is missing"):
        Session(made, worker).end()
    assert world1.job(job).state is JobState.RUNNING


def test_events_are_taken_once_and_a_gap_ends_the_answer() -> None:
    """Guards: without `first` a repeated message said everything twice, and a lost one was not noticed; without the
    fence in `exchange` a session answered a question that it had not taken. Whoever has read the end may ask
    again: without the end in `read` that question was refused, and without its number in `drop` it was forgotten."""
    rooms = ChatRooms()
    number = rooms.put("job", HELLO)
    assert rooms.exchange("job", ChatReply(fence=1, question=number, events=(DONE,))).is_cancelled
    assert rooms.exchange("job", ChatReply(fence=1)).number == number
    assert rooms.exchange("job", ChatReply(fence=1)).number == number, "the reply may have been lost"
    said = ChatReply(fence=1, question=number, events=(text("a"), text("b")))
    rooms.exchange("job", said)
    rooms.exchange("job", said)
    assert [event.text for event in rooms.read("job", 0.0)] == ["a", "b"]
    assert rooms.exchange("job", ChatReply(fence=1)) == ChatTask(), "its answer has begun"
    rooms.exchange("job", ChatReply(fence=1, question=number, first=3, events=(text("d"), DONE)))
    assert rooms.read("job", 0.0) == [LOST]
    assert rooms.exchange("job", ChatReply(fence=1, question=number + 1)).is_cancelled
    next_one = rooms.put("job", HELLO)
    rooms.drop("job", number)
    rooms.exchange("job", ChatReply(fence=2))
    with pytest.raises(StaleFenceError):
        rooms.exchange("job", ChatReply(fence=1))
    rooms.drop("job", next_one)
    assert len(rooms) == 0


def test_the_memory_for_questions_and_answers_has_limits() -> None:
    rooms = ChatRooms()
    number = rooms.put("job-0", HELLO)
    with pytest.raises(ConflictError, match="Another question to this session"):
        rooms.put("job-0", HELLO)
    for other in range(1, MAX_ROOMS):
        rooms.put(f"job-{other}", HELLO)
    with pytest.raises(ConflictError, match="as many questions as it can"):
        rooms.put("job-more", HELLO)
    rooms.exchange("job-0", ChatReply(fence=1))
    pieces = MAX_ANSWER_CHARACTERS // MAX_TEXT + 2
    for first in range(pieces):
        rooms.exchange("job-0", ChatReply(fence=1, question=number, first=first, events=(text("x" * 2 * MAX_TEXT),)))
    found = rooms.read("job-0", 0.0)
    assert found[-1].kind is Kind.FAILED
    assert "more than an answer can have" in found[-1].text
    assert sum(len(event.text) for event in found[:-1]) <= MAX_ANSWER_CHARACTERS
    with pytest.raises(ValueError, match="at most 256"):
        ChatReply(fence=1, events=(text("x"),) * 257)
