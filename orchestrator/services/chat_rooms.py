"""Questions on their way to chat sessions on machines, and the answers on their way back. They are only in memory.

A machine cannot be called. Its session takes the question of its room and sends the answer piece by piece.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from orchestrator.domain.errors import ConflictError, StaleFenceError
from worker.shared.chat import AnswerEvent, ChatEvent, ChatReply, ChatTask, Question, failed

MAX_ROOMS = 16
"""Questions that wait or are answered at once. One may have 3 million characters."""
MAX_ANSWER_EVENTS = 8_192
MAX_ANSWER_CHARACTERS = 1 << 20
"""Of all events of one answer."""
LOST = failed("the machine of this session was lost before its answer was complete; ask again")
_TOO_LONG = failed("the machine sent more than an answer can have, so the rest is left out")


@dataclass(kw_only=True)
class _Room:
    """One question. `fence` is that of the session that has taken it, `received` the number of its events."""

    number: int
    question: Question
    fence: int | None = None
    received: int = 0
    characters: int = 0
    events: deque[ChatEvent] = field(default_factory=deque[ChatEvent])
    is_over: bool = False

    def add(self, event: ChatEvent) -> None:
        if self.is_over:
            return
        self.characters += len(event.text)
        if self.received > MAX_ANSWER_EVENTS or self.characters > MAX_ANSWER_CHARACTERS:
            event = _TOO_LONG
        self.events.append(event)
        self.is_over = event.is_last


class ChatRooms:
    """At most one question for each chat's job. Its answer is gone once it is read."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._rooms: dict[str, _Room] = {}
        self._numbers = count(1)

    def __len__(self) -> int:
        return len(self._rooms)

    def put(self, job_id: str, question: Question) -> int:
        """Leave a question for the session of this job. Returns its number. Raises `ConflictError`."""
        with self._changed:
            if job_id in self._rooms:
                raise ConflictError("Another question to this session is being answered. Wait for it, or stop it.")
            if len(self._rooms) >= MAX_ROOMS:
                raise ConflictError("The server passes on as many questions as it can. Try again in a moment.")
            self._rooms[job_id] = _Room(number=next(self._numbers), question=question)
            return self._rooms[job_id].number

    def drop(self, job_id: str, number: int) -> None:
        """Forget the question of this number and what has arrived of its answer. Its session stops to answer it."""
        with self._changed:
            if job_id in self._rooms and self._rooms[job_id].number == number:
                del self._rooms[job_id]

    def read(self, job_id: str, wait_s: float) -> list[ChatEvent]:
        """The next events of the answer, in their order. Empty if none arrives in that time.

        Forgets the question with the last event: whoever reads that may ask the next question at once.
        """
        with self._changed:
            room = self._rooms[job_id]
            self._changed.wait_for(lambda: bool(room.events), wait_s)
            found = list(room.events)
            room.events.clear()
            if room.is_over:
                del self._rooms[job_id]
        return found

    def taken_by(self, job_id: str) -> int | None:
        """The fence of the session that answers the question."""
        with self._changed:
            return self._rooms[job_id].fence

    def exchange(self, job_id: str, reply: ChatReply) -> ChatTask:
        """A session brings events and takes the next question. Events that it repeats are ignored.

        The caller has checked its fence. Raises `StaleFenceError` if a newer session has the question meanwhile.
        """
        with self._changed:
            room = self._rooms.get(job_id)
            if room is not None and room.fence is not None:
                if reply.fence < room.fence:
                    raise StaleFenceError(f"Another session of job {job_id} has begun. Stop the worker.")
                if reply.fence > room.fence:
                    room.add(LOST)
                    self._changed.notify_all()
            if reply.question is None:
                return self._next(room, reply.fence)
            if room is None or room.number != reply.question or room.fence != reply.fence:
                return ChatTask(is_cancelled=True)
            self._take(room, reply.first, reply.events)
            return ChatTask()

    def _next(self, room: _Room | None, fence: int) -> ChatTask:
        """The question, if no session has taken it, or if the reply to this one's call was lost."""
        if room is None or room.is_over or room.fence not in (None, fence) or room.received:
            return ChatTask()
        room.fence = fence
        return ChatTask(number=room.number, question=room.question)

    def _take(self, room: _Room, first: int, events: Sequence[AnswerEvent]) -> None:
        if first > room.received:  # what is missing will never come
            room.add(LOST)
        for event in events[max(0, room.received - first) :]:
            room.received += 1
            room.add(ChatEvent(kind=event.kind, arm=event.arm, text=event.text, tokens=event.tokens))
        self._changed.notify_all()
