"""A session of a chat on a machine, with a real tiny model and without a server: questions, answers, and its end."""

from __future__ import annotations

import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from benchmarks.export.models import make_adapter, make_model
from tests.helpers.adapter_jobs import job_with_adapter
from tests.helpers.exporter import packed
from worker.agent import work
from worker.agent.deadline import Budget
from worker.agent.limits import Part
from worker.agent.uplink import HttpUplink, ServerAway, Stale, StdoutUplink
from worker.chat import session
from worker.shared import causes, wheel
from worker.shared.chat import ChatReply, ChatTask, Kind, Question
from worker.shared.evaluation_units import Arm
from worker.shared.messages import Phase, Ticket
from worker.training.interface import PermanentError, Trained, TrainingJob, UnfitMachineError

TICKET = Ticket(lease="lease-1", token="t", budget_s=60.0, server_url="http://127.0.0.1:9")
HELLO = Question(question="hello", max_tokens=6)


class Hooks:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *said: self.seen.append(said[0])


class Server(HttpUplink):
    """Answers the calls of a session by a function. Every reply that arrived is kept."""

    def __init__(self, answer: Callable[[ChatReply], ChatTask]) -> None:
        super().__init__(TICKET)
        self._answer, self.said = answer, list[ChatReply]()

    def request(self, path: str, body: str, expected: TypeAdapter[Any]) -> Any:
        assert path == "chat"
        reply = ChatReply.model_validate_json(body)
        task = self._answer(reply)
        self.said.append(reply)
        return expected.validate_json(task.model_dump_json())

    def of(self, number: int) -> list[ChatReply]:
        """What was said of a question. Each reply begins where the one before has ended."""
        replies = [reply for reply in self.said if reply.question == number]
        ends = [sum(len(each.events) for each in replies[:place]) for place in range(len(replies))]
        assert [reply.first for reply in replies] == ends
        return replies


class Clock:
    """Each wait of the session moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Questions:
    """Hands out one question after the other, then none."""

    def __init__(self, *questions: Question) -> None:
        self._left = list(enumerate(questions, 1))

    def __call__(self, reply: ChatReply) -> ChatTask:
        if reply.question is not None or not self._left:
            return ChatTask()
        number, question = self._left.pop(0)
        return ChatTask(number=number, question=question)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A base model, and the archive of an adapter for it."""
    folder = tmp_path_factory.mktemp("made")
    base = make_model(folder / "base", "llama")
    return base, packed(make_adapter(folder / "adapter", base, std=0.3))[0]


def job_of(base: Path, archive: bytes, home: Path) -> TrainingJob:
    return job_with_adapter(base, archive, home, fence=3, chat={"job": "job-1", "minutes": 20})


@pytest.fixture
def job(made: tuple[Path, bytes], tmp_path: Path) -> TrainingJob:
    return job_of(*made, tmp_path / "home")


def served(
    job: TrainingJob, server: Server, *, clock: Clock | None = None, budget_s: float = 600.0, hooks: Any = None
) -> tuple[Trained, Clock]:
    clock = clock or Clock()
    seen: Any = hooks or Hooks()
    budget, waits = Budget(budget_s, clock), session.Waits(send_s=0.01)
    return session.serve(job, seen, server, budget, waits=waits, clock=clock, sleep=clock.sleep), clock


def test_one_model_answers_every_question_and_an_idle_session_ends(
    job: TrainingJob, capfd: pytest.CaptureFixture[str]
) -> None:
    """Guards: without the idle limit the session stayed until its time was over. Nothing of a conversation is in the
    session's log."""
    server, hooks = Server(Questions(HELLO, HELLO.model_copy(update={"only": "adapter"}))), Hooks()
    trained, clock = served(job, server, hooks=hooks)
    assert (trained.step, trained.complete) == (1, True)
    assert work.stored(trained, lambda *_: "never") == {}
    assert 300.0 <= clock.now < 302.0
    assert hooks.seen[:3] == [Part.LOAD, Phase.WAIT, Part.CHAT]
    assert hooks.seen[3:] == [Phase.EVAL, Phase.WAIT] * 2
    assert {reply.fence for reply in server.said} == {3}
    for number, arms in (1, {Arm.BASE, Arm.ADAPTER}), (2, {Arm.ADAPTER}):
        events = [event for reply in server.of(number) for event in reply.events]
        assert (events[0].kind, events[0].text) == (Kind.READY, "org/base on CPU")
        assert events[-1].kind is Kind.DONE
        assert {event.arm for event in events if event.kind is Kind.TEXT} == arms
        assert {event.arm for event in events if event.kind is Kind.END} == arms
    assert "hello" not in "".join(capfd.readouterr())


def test_a_question_begins_the_idle_time_anew(job: TrainingJob) -> None:
    """Guard: with the limit counted from the session's start a conversation was cut off."""
    clock, late = Clock(), Questions(HELLO)
    server = Server(lambda reply: ChatTask() if clock.now < 250.0 and reply.question is None else late(reply))
    served(job, server, clock=clock)
    assert 550.0 <= clock.now < 553.0


def test_its_time_ends_a_session(job: TrainingJob) -> None:
    """Guard: without the budget in the loop the watch released the lease, and another session began."""
    _, clock = served(job, Server(lambda _: ChatTask()), budget_s=100.0)
    assert 90.0 <= clock.now < 95.0


def test_its_time_ends_a_session_in_the_middle_of_an_answer(job: TrainingJob) -> None:
    """Guard: without the budget in `is_cancelled` the watch ended it there."""
    questions, clock = Questions(HELLO.model_copy(update={"max_tokens": 2_048})), Clock()

    def late(reply: ChatReply) -> ChatTask:
        clock.now = 95.0
        return questions(reply)

    server = Server(late)
    trained, _ = served(job, server, clock=clock, budget_s=100.0)
    assert trained.complete
    events = [event for reply in server.of(1) for event in reply.events]
    assert {event.text for event in events if event.kind is Kind.END} == {"cancelled"}


def test_a_server_that_is_away_gets_each_event_once(job: TrainingJob) -> None:
    """Guard: with events counted as sent before there is an answer, what was lost on the way never arrived."""
    questions, calls = Questions(HELLO), [0]

    def answer(reply: ChatReply) -> ChatTask:
        calls[0] += 1
        if calls[0] % 3 == 1:
            raise ServerAway("no reply")
        return questions(reply)

    server, clock = Server(answer), Clock()
    seen: Any = Hooks()
    waits = session.Waits(idle_s=0.1, poll_s=0.01, send_s=0.01)
    session.serve(job, seen, server, Budget(600.0, clock), waits=waits, clock=clock, sleep=clock.sleep)
    events = [event for reply in server.of(1) for event in reply.events]
    assert [event.kind for event in events].count(Kind.READY) == 1
    assert events[-1].kind is Kind.DONE


class HeldClock(Clock):
    """Holds the generation at its first token until the server has said that the answer is not wanted any more."""

    def __init__(self) -> None:
        super().__init__()
        self.is_asked, self.is_left, self.tokens = False, threading.Event(), 0

    def __call__(self) -> float:
        if self.is_asked:
            assert self.is_left.wait(20)
            self.tokens += 1
        return self.now


def test_somebody_who_leaves_stops_the_answer(job: TrainingJob) -> None:
    """Guard: without `is_cancelled` the machine went on to generate for somebody who had left."""
    questions, clock = Questions(HELLO.model_copy(update={"max_tokens": 2_048})), HeldClock()

    def leave(reply: ChatReply) -> ChatTask:
        if reply.question is None:
            task = questions(reply)
            clock.is_asked = task.question is not None
            return task
        clock.is_left.set()
        return ChatTask(is_cancelled=True)

    server = Server(leave)
    served(job, server, clock=clock)
    assert clock.tokens < 50
    assert [reply.first for reply in server.of(1)] == [0]


def test_a_lease_that_is_over_ends_the_session(job: TrainingJob) -> None:
    def over(_: ChatReply) -> ChatTask:
        raise Stale("409: lease lease-1 has ended")

    trained, _ = served(job, Server(over))
    assert not trained.complete


def test_a_machine_that_cannot_call_is_refused_in_words(job: TrainingJob) -> None:
    seen: Any = Hooks()
    with pytest.raises(PermanentError, match="needs a machine that can call the server"):
        session.serve(job, seen, StdoutUplink(TICKET), Budget(60.0))
    assert seen.seen == []


def test_whose_fault_it_is_that_no_model_is_loaded(
    made: tuple[Path, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: with every `ChatError` permanent, a machine with little memory ended the chat for good."""
    base, archive = made
    server = Server(lambda _: ChatTask())
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as bad:
        bad.writestr("../out", b"x")
    with pytest.raises(PermanentError, match="unsafe entry"):
        served(job_of(base, (tmp_path / "bad.zip").read_bytes(), tmp_path / "a"), server)
    other = make_model(tmp_path / "other", "llama", hidden_size=32)
    with pytest.raises(PermanentError, match="another base model"):
        served(job_of(other, archive, tmp_path / "b"), server)

    def full(*_: Any, **__: Any) -> Any:
        raise UnfitMachineError("the model needs 9 GiB", causes.MEMORY)

    monkeypatch.setattr("worker.chat.model.check_fit", full)  # no model of a test is too large for this computer
    with pytest.raises(UnfitMachineError, match="needs 9 GiB") as refused:
        served(job_of(base, archive, tmp_path / "c"), server)
    assert refused.value.cause == causes.MEMORY


def test_training_is_not_tried_for_a_chat(job: TrainingJob) -> None:
    said: list[str] = []
    work.try_machine(job.spec, said.append)
    assert said == []


def test_what_is_sent_to_a_session_of_a_chat_is_whole(tmp_path: Path) -> None:
    """Guard: with `worker/shared/chat_limits.py` missing in `ADAPTERS` the session ended at its first import."""
    plain, whole = (set(zipfile.ZipFile(BytesIO(wheel.build(adapters=a).data)).namelist()) for a in (False, True))
    assert not any(name.startswith(("worker/chat/", "worker/export/")) for name in plain)
    assert {"worker/chat/session.py", "worker/export/adapter.py", "worker/shared/chat.py"} <= whole - plain
    zipfile.ZipFile(BytesIO(wheel.build(adapters=True).data)).extractall(tmp_path)
    command = [sys.executable, "-c", "import worker.chat.session as found; print(found.__file__)"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(tmp_path))
