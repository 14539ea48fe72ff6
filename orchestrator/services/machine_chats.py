"""Chats in sessions on machines: jobs that begin with the adapter of a finished job and answer its owner's questions.

A session ends by itself when its minutes are over or when nobody asks. Nothing of a conversation is stored: questions
and answers pass through `chat_rooms` in the server's memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.domain.accounts import Actor
from orchestrator.domain.errors import ConflictError, ForbiddenError, InvalidError
from orchestrator.domain.jobs import Event, Job, Lease
from orchestrator.domain.lifecycle import JobState
from orchestrator.ports.repository import Transaction
from orchestrator.services.access import owned_job
from orchestrator.services.chat_rooms import LOST, ChatRooms
from orchestrator.services.context import Context
from orchestrator.services.dispatch import why_waiting
from orchestrator.services.follow_ups import follow_up
from orchestrator.services.jobs import Ready, Submission, queue
from orchestrator.services.leases import held
from worker.shared.chat import ChatEvent, ChatReply, ChatTask, Kind, Question, failed
from worker.shared.chat_limits import LEAST_MINUTES, MAX_ANSWER_S, MAX_MINUTES, MINUTES
from worker.shared.export_spec import ChatSpec
from worker.shared.job_spec import JobSpec
from worker.shared.memory_estimate import Need

MAX_WAIT_S = 1_800.0
"""How long a question waits for its session. It can be asked again."""
ANSWER_S = MAX_ANSWER_S + 60.0
LOOK_EVERY_S = 2.0
"""Seconds between two looks at the session's job."""
READ_S = 0.2
"""Seconds within which a cancelled question is given up."""
_PHASES = {"boot": "starting", "download": "downloading the models", "load": "loading the models"}


def find_trained(tx: Transaction, actor: Actor, job_id: str) -> Job:
    """A job of the actor's own with an adapter, locked. Others may not use it, whatever their role."""
    job = owned_job(tx, actor, job_id)
    if job.member_id != actor.member_id:
        raise ForbiddenError("Only the owner of a job can chat with its adapter.")
    if job.is_evaluation or job.adapter_key is None:
        raise ConflictError(f"{job_id} is {job.state} and has no adapter to chat with.")
    return job


def start(ctx: Context, actor: Actor, job_id: str, minutes: int = MINUTES) -> Submission:
    """Queue a session for chats with a job's adapter. While there is one, it is returned in place of a second one."""
    if not LEAST_MINUTES <= minutes <= MAX_MINUTES:
        words = f"must be from {LEAST_MINUTES} to {MAX_MINUTES}"
        raise InvalidError(f"The minutes of a session {words}.", [("/minutes", words)])
    with ctx.uow() as tx:
        trained = find_trained(tx, actor, job_id)  # locked: there is no second session, and it is not deleted
        found = _unended(tx, job_id)
        if found is not None:
            return Submission(job=found, is_new=False, notes=())
        job = queue(ctx, tx, actor, _ready(trained, minutes), cloned_from=trained.id)
        event = Event(job_id=trained.id, at=job.created_at, kind="job.chat", actor=actor.name, data={"job": job.id})
        trained.events.append(event)
        tx.jobs.save(trained)
    ctx.wake()
    return Submission(job=job, is_new=True, notes=())


def _ready(trained: Job, minutes: int) -> Ready:
    spec = JobSpec.model_validate(trained.spec)
    longest = min(60.0 * minutes, spec.placement.max_session_s or float("inf"))
    placement = spec.placement.model_copy(update={"max_session_s": longest})
    chat = ChatSpec(job=trained.id, minutes=minutes)
    spec = follow_up(spec, "Chat", chat=chat, backend="auto", placement=placement)
    return Ready(
        spec=spec,
        as_json=spec.model_dump(mode="json"),
        need=Need(gpu_bytes=trained.gpu_bytes, host_bytes=trained.host_bytes),
        notes=(),
        accepted=(),
        key=None,
        request_hash="",
    )


def _unended(tx: Transaction, job_id: str) -> Job | None:
    return next((job for job in reversed(tx.jobs.unended_clones(job_id)) if job.is_chat), None)


@dataclass(frozen=True, kw_only=True)
class Session:
    """A session that has not ended. `doing` says what it waits for or does, `over_at` when its time is over."""

    job: Job
    doing: str
    is_ready: bool
    over_at: float | None


def session_of(ctx: Context, job_id: str) -> Session | None:
    """The session of a job's adapter, for a caller who has checked whose job it is."""
    with ctx.uow() as tx:
        job = _unended(tx, job_id)
        lease = tx.leases.live_of_job(job.id) if job is not None else None
    if job is None:
        return None
    is_ready = lease is not None and _is_ready(job, lease)
    over_at = lease.created_at + lease.budget_s if lease is not None else None
    doing = _is_over(job) or _doing(ctx, job, lease)
    return Session(job=job, doing=doing, is_ready=is_ready, over_at=over_at)


def find_session(tx: Transaction, job_id: str) -> Job:
    """The job of the session that can be asked, now or soon. Raises `ConflictError`."""
    job = _unended(tx, job_id)
    if job is None:
        raise ConflictError(f"No session for chats with job {job_id} is queued or running. Start one.")
    if (over := _is_over(job)) is not None:
        raise ConflictError(over)
    return job


def exchange(ctx: Context, rooms: ChatRooms, lease_id: str, reply: ChatReply) -> ChatTask:
    """A session brings events of its answer and takes the next question. Raises `StaleFenceError` once it is over."""
    with ctx.uow() as tx:
        _, job = held(tx, lease_id, reply.fence)
    if not job.is_chat:
        raise ConflictError(f"Job {job.id} is not a chat.")
    return rooms.exchange(job.id, reply)


def answer(
    ctx: Context, rooms: ChatRooms, session: str, question: Question, cancelled: threading.Event
) -> Iterator[ChatEvent]:
    """The events of a session's answers: what it waits for, then what it says. Ends soon after `cancelled` is set."""
    try:
        number = rooms.put(session, question)
    except ConflictError as error:
        yield failed(str(error))
        return
    try:
        yield from _answer(ctx, rooms, session, cancelled)
    finally:
        rooms.drop(session, number)


def _answer(ctx: Context, rooms: ChatRooms, session: str, cancelled: threading.Event) -> Iterator[ChatEvent]:
    said, look_at, until = "", 0.0, ctx.clock.now() + MAX_WAIT_S
    is_taken = False
    while not cancelled.is_set():
        for event in rooms.read(session, READ_S):
            yield event
            if event.is_last:
                return
        now, taken_by = ctx.clock.now(), rooms.taken_by(session)
        if taken_by is not None and not is_taken:
            is_taken, until = True, now + ANSWER_S
        if now >= until:
            yield failed("the machine took too long; ask again")
            return
        if now < look_at:
            continue
        look_at = now + LOOK_EVERY_S
        job, lease = _seen(ctx, session)
        over, is_lost = _is_over(job), taken_by is not None and (lease is None or lease.fence != taken_by)
        if over is not None or is_lost:
            yield from _rest(rooms.read(session, 0.0), LOST if over is None else failed(over))
            return
        doing = _doing(ctx, job, lease)
        if not is_taken and doing != said:
            said = doing
            yield ChatEvent(kind=Kind.LOADING, text=doing)


def _rest(events: list[ChatEvent], end: ChatEvent) -> list[ChatEvent]:
    """What a session has sent before it ended, with `end` if its answer is not complete."""
    return events if events and events[-1].is_last else [*events, end]


def _seen(ctx: Context, session: str) -> tuple[Job, Lease | None]:
    with ctx.uow() as tx:
        return tx.jobs.get_many([session])[session], tx.leases.live_of_job(session)


def _is_over(job: Job) -> str | None:
    """Why the session of this job answers no more questions, or None."""
    if job.state is JobState.PAUSED or job.pause_requested_at is not None:
        return f"The session is paused. Resume job {job.id}, then ask again."
    if job.cancel_requested_at is not None:
        return "The session is being ended. Start another one."
    if job.state.is_final:
        return f"The session is over{f' ({job.message})' if job.message else ''}. Start another one."
    return None


def _is_ready(job: Job, lease: Lease) -> bool:
    return job.state is JobState.RUNNING and lease.phase not in _PHASES


def _doing(ctx: Context, job: Job, lease: Lease | None) -> str:
    """What a session waits for or does, in words."""
    if job.state is JobState.RUNNING and lease is not None:
        return f"the machine is {_PHASES[lease.phase]}" if lease.phase in _PHASES else "the machine is ready"
    why = why_waiting(ctx, job.id)
    if job.state is JobState.LEASED:
        return f"a machine is starting{f': {why.reason}' if why is not None else ''}"
    return f"waiting for a machine{f': {why.reason}' if why is not None else ''}"
