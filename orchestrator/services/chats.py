"""Chats with a job's adapter and its base model. Nothing of a conversation is stored: each request brings its turns.

The server's computer has at most one loaded model. It stays for a few minutes, for the next question or for the next
job that takes its place. Sessions on machines are in `machine_chats`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum

from orchestrator.domain.accounts import Actor, Role
from orchestrator.domain.errors import ConflictError, InvalidError, UnavailableError
from orchestrator.domain.jobs import Job
from orchestrator.ports.chats import ChatAddress, Chats, LoadedChat
from orchestrator.ports.stores import StoreError
from orchestrator.services import machine_chats
from orchestrator.services.chat_rooms import ChatRooms
from orchestrator.services.context import Context
from orchestrator.services.stored_adapters import unpack_adapter
from worker.shared.adapter_archive import ArchiveError
from worker.shared.chat import ChatEvent, Kind, Question, failed
from worker.shared.evaluation_units import Arm
from worker.shared.files import temporary_folder

MAX_AT_ONCE = 8
"""Answers that are generated at once, because each keeps a few threads of the server. One for each member."""
IDLE_S = 300.0


class Place(Enum):
    """Where the models run that are asked."""

    HERE = "here"
    ADDRESS = "address"
    MACHINE = "machine"


@dataclass(kw_only=True)
class _Loaded:
    """The model that is loaded now, and the adapter's folder."""

    job_id: str
    chat: LoadedChat
    folder: ExitStack

    def close(self) -> None:
        self.chat.close()
        self.folder.close()


class RunningChats:
    """Who is being answered, and the loaded model, which is given up `idle_s` seconds after its last answer."""

    def __init__(self, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self._lock = threading.Lock()
        self._members: dict[str, tuple[Place, threading.Event]] = {}
        self._local = threading.Lock()
        self._loaded: _Loaded | None = None
        self._timer: threading.Timer | None = None
        self._is_stopped = False

    @property
    def is_loaded(self) -> bool:
        """Whether a model is in memory."""
        return self._loaded is not None and self._loaded.chat.is_alive

    def begin(self, member_id: str, place: Place) -> threading.Event:
        """Note that a member is being answered. The event cancels the answer. Raises `ConflictError`.

        Sessions on machines have a limit of their own (`chat_rooms`), because their answers may wait for long.
        """
        with self._lock:
            if self._is_stopped:
                raise UnavailableError("The server is stopping. Try again in a moment.")
            if member_id in self._members:
                raise ConflictError("Another question of yours is being answered. Wait for it, or stop it.")
            near = sum(each is not Place.MACHINE for each, _ in self._members.values())
            if place is not Place.MACHINE and near >= MAX_AT_ONCE:
                raise ConflictError("The server is answering as many questions as it can. Try again in a moment.")
            if place is Place.HERE and not self._local.acquire(blocking=False):
                raise ConflictError("The server's computer is answering another member. Try again in a moment.")
            cancelled = threading.Event()
            self._members[member_id] = place, cancelled
            return cancelled

    def end(self, member_id: str, place: Place) -> None:
        """The member's answer is over, and so is its use of the loaded model."""
        with self._lock:
            self._members.pop(member_id, None)
            if place is Place.HERE:
                self._local.release()
                self._wait_idle()

    def loaded(self, job_id: str) -> LoadedChat | None:
        """The loaded model if it is that of the job. Called by the one that is being answered locally."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            found = self._loaded
            return found.chat if found is not None and found.job_id == job_id and found.chat.is_alive else None

    def replace(self, job_id: str, chat: LoadedChat, folder: ExitStack) -> None:
        """Keep a model that was loaded."""
        with self._lock:
            self._loaded = _Loaded(job_id=job_id, chat=chat, folder=folder)

    def give_up(self) -> None:
        """Forget the loaded model."""
        with self._lock:
            found, self._loaded = self._loaded, None
        if found is not None:
            found.close()

    def cancel(self) -> None:
        """End all answers: the server stops."""
        with self._lock:
            self._is_stopped = True
            for _, cancelled in self._members.values():
                cancelled.set()

    def stop(self) -> None:
        """The same, and end the process of the loaded model."""
        self.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self.give_up()

    def _wait_idle(self) -> None:
        self._timer = threading.Timer(self._idle_s, self._give_up_if_idle)
        self._timer.daemon = True
        self._timer.start()

    def _give_up_if_idle(self) -> None:
        if self._local.acquire(blocking=False):
            try:
                self.give_up()
            finally:
                self._local.release()


@dataclass(frozen=True, kw_only=True)
class ChatContext:
    """The context of every use case, and what runs chats."""

    ctx: Context
    chats: Chats
    running: RunningChats
    rooms: ChatRooms


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An address that a person names, as they typed it. See `ports.chats.ChatAddress`."""

    url: str
    model: str = ""
    base_model: str = ""
    lora: int | None = None
    key: str = field(default="", repr=False)


@dataclass(kw_only=True)
class PendingAnswer:
    """A question that may be answered now. `end` must be called, and may be called again.

    `is_begun` says that whoever iterates over the answers will call it.
    """

    context: ChatContext
    job: Job
    question: Question
    place: Place
    cancelled: threading.Event
    where: ChatAddress | None = None
    session: str = ""
    is_begun: bool = False
    _is_over: bool = False

    def answer(self) -> Iterator[ChatEvent]:
        """The events of the answers. They end early once `cancelled` is set."""
        if self.where is not None:
            return self.context.chats.ask_endpoint(self.where, self.question, self.cancelled)
        if self.session:
            context = self.context
            return machine_chats.answer(context.ctx, context.rooms, self.session, self.question, self.cancelled)
        return _answer_here(self)

    def end(self) -> None:
        """Let the member ask again."""
        if not self._is_over:
            self._is_over = True
            self.context.running.end(self.job.member_id, self.place)


def ask(
    context: ChatContext,
    actor: Actor,
    job_id: str,
    question: Question,
    endpoint: Endpoint | None = None,
    *,
    on_machine: bool = False,
) -> PendingAnswer:
    """Begin to answer a question to a job's adapter: here, at an address, or in the job's session on a machine.

    Only the job's owner may ask. Only an admin's address may be in the server's own network. Raises `ConflictError`
    while the member, or the server's computer, is being answered.
    """
    if on_machine and endpoint is not None:
        words = "Choose one of a session on a machine and an address."
        raise InvalidError(words, [("/on_machine", words)])
    with context.ctx.uow() as tx:
        job = machine_chats.find_trained(tx, actor, job_id)
        session = machine_chats.find_session(tx, job_id).id if on_machine else ""
    where = _address(context.chats, actor, question, endpoint) if endpoint is not None else None
    place = Place.MACHINE if on_machine else Place.HERE if where is None else Place.ADDRESS
    if place is Place.HERE and (obstacle := context.chats.obstacle()):
        raise ConflictError(obstacle)
    cancelled = context.running.begin(actor.member_id, place)
    return PendingAnswer(
        context=context,
        job=job,
        question=question,
        place=place,
        cancelled=cancelled,
        where=where,
        session=session,
    )


def _address(chats: Chats, actor: Actor, question: Question, endpoint: Endpoint) -> ChatAddress:
    if Arm.BASE in question.arms and not endpoint.base_model and endpoint.lora is None:
        words = "Name the base model at the address, or llama-server's number of the adapter, or ask only the adapter."
        raise InvalidError(words, [("/endpoint/base_model", words)])
    anywhere = actor.role is Role.ADMIN
    return ChatAddress(
        url=chats.check(endpoint.url, anywhere=anywhere),
        models={Arm.ADAPTER: endpoint.model, Arm.BASE: endpoint.base_model or endpoint.model},
        lora=endpoint.lora,
        key=endpoint.key.strip(),
        anywhere=anywhere,
    )


def _answer_here(asked: PendingAnswer) -> Iterator[ChatEvent]:
    running = asked.context.running
    chat = running.loaded(asked.job.id)
    if chat is None:
        running.give_up()
        yield ChatEvent(kind=Kind.LOADING, text="reading the adapter")
        with ExitStack() as folder:
            try:
                place = folder.enter_context(temporary_folder("chat-", None))
                adapter = unpack_adapter(asked.context.ctx, asked.job, place)
            except (StoreError, ArchiveError, OSError) as error:
                yield failed(f"the adapter cannot be read: {error}")
                return
            chat = asked.context.chats.load(adapter, str(asked.job.spec["base_model"]))
            running.replace(asked.job.id, chat, folder.pop_all())
    yield from chat.ask(asked.question, asked.cancelled)
