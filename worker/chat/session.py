"""One session of a chat on a machine: load base and adapter once, then answer questions until nobody asks any more.

The server cannot call a machine, so the session asks for questions. It ends before its time is over, or after
`IDLE_S` without a question. Nothing of a conversation is kept or logged.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import TypeAdapter

from worker.agent.deadline import Budget
from worker.agent.limits import Part
from worker.agent.uplink import HttpUplink, ServerAway, Stale, Uplink
from worker.chat.model import ChatError, ChatModel
from worker.chat.side_by_side import answer
from worker.shared import causes
from worker.shared.adapter_archive import ArchiveError, unpack
from worker.shared.chat import AnswerEvent, ChatEvent, ChatReply, ChatTask, Kind
from worker.shared.chat_limits import IDLE_S, MAX_EVENTS
from worker.shared.messages import Phase
from worker.training.interface import Hooks, PermanentError, Trained, TrainingJob, UnfitMachineError

END_S = 5.0
"""Before the session would be ended for its time."""
_TASK = TypeAdapter(ChatTask)


@dataclass(frozen=True, kw_only=True)
class Waits:
    """Seconds: without a question until the session ends, between two calls for one, and between two of an answer.

    The rest of an answer waits `give_up_s` for a server that does not reply.
    """

    idle_s: float = IDLE_S
    poll_s: float = 1.0
    send_s: float = 0.25
    give_up_s: float = 60.0


USUAL = Waits()


def serve(
    job: TrainingJob,
    hooks: Hooks,
    uplink: Uplink,
    budget: Budget,
    *,
    waits: Waits = USUAL,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Trained:
    """Answer questions about the adapter whose archive is the job's data file. Returns when the chat is over.

    Raises `PermanentError` if no machine could load this adapter, and `UnfitMachineError` if another one may.
    """
    if not isinstance(uplink, HttpUplink):
        raise PermanentError("a chat needs a machine that can call the server; set TRAINHOP_PUBLIC_URL there")
    hooks.begins(Part.LOAD)
    model = _loaded(job)
    hooks.phase(Phase.WAIT)
    hooks.begins(Part.CHAT)
    asked_at = clock()

    def is_over() -> bool:
        return budget.left <= budget.margin + END_S

    while clock() < asked_at + waits.idle_s and not is_over():
        try:
            task = _call(uplink, ChatReply(fence=job.fence))
            if task is None or task.question is None or task.number is None:
                sleep(waits.poll_s)
                continue
            hooks.phase(Phase.EVAL)
            line = _Line(uplink, job.fence, task.number, waits)
            line.emit(ChatEvent(kind=Kind.READY, text=f"{job.spec.base_model} on {model.device}"))
            with line:
                answer(model, task.question, line.emit, lambda line=line: line.is_cancelled or is_over())
        except Stale:  # the thread that reports ends the session
            return Trained(step=0, complete=False)
        hooks.phase(Phase.WAIT)
        asked_at = clock()
    return Trained(step=1, complete=True)


def _call(uplink: HttpUplink, reply: ChatReply) -> ChatTask | None:
    """None if the server did not answer. Raises `Stale`."""
    try:
        return uplink.request("chat", reply.model_dump_json(exclude_defaults=True), _TASK)
    except ServerAway:
        return None


def _loaded(job: TrainingJob) -> ChatModel:
    folder = job.work_dir / "adapter"
    try:
        unpack(job.datasets[0], folder)
        return ChatModel(folder, str(job.base_folder or job.spec.base_model), lambda _: None)
    except ArchiveError as error:
        raise PermanentError(str(error)) from error
    except ChatError as error:
        match error.__cause__:
            case UnfitMachineError():
                raise error.__cause__ from None
            case torch.OutOfMemoryError() | MemoryError():
                raise UnfitMachineError(str(error), causes.MEMORY) from error
        raise PermanentError(str(error)) from error


class _Line:
    """Sends the events of one answer while it is generated, on a thread that ends with the block."""

    def __init__(self, uplink: HttpUplink, fence: int, number: int, waits: Waits) -> None:
        self._uplink, self._fence, self._number, self._waits = uplink, fence, number, waits
        self._lock, self._events, self._sent = threading.Lock(), list[AnswerEvent](), 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chat-line", daemon=True)
        self.is_cancelled = False

    def emit(self, event: ChatEvent) -> None:
        """Send an event soon."""
        with self._lock:
            self._events.append(AnswerEvent.model_validate(event.to_json()))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        until = float("inf")
        while not self.is_cancelled:
            if self._ended.wait(self._waits.send_s):
                until = min(until, time.monotonic() + self._waits.give_up_s)
            has_answered = self._send()
            if self._ended.is_set():
                if self._sent == len(self._events) or time.monotonic() > until:
                    return
                if not has_answered:
                    time.sleep(self._waits.poll_s)

    def _send(self) -> bool:
        with self._lock:
            events = tuple(self._events[self._sent : self._sent + MAX_EVENTS])
        said = ChatReply(fence=self._fence, question=self._number, first=self._sent, events=events)
        try:
            task = _call(self._uplink, said)
        except Stale:  # the next question is refused like this one's answer
            task = ChatTask(is_cancelled=True)
        if task is None:
            return False
        self._sent += len(events)
        self.is_cancelled = self.is_cancelled or task.is_cancelled
        return True
