"""The only entry point for workers' messages, from HTTP, a log or a folder: check, apply, conclude."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import overload

from pydantic import TypeAdapter, ValidationError

from orchestrator.domain.errors import TrainhopError, UnavailableError
from orchestrator.domain.jobs import Lease
from orchestrator.ports.repository import Transaction
from orchestrator.services import checkpoints, finishes, leases
from orchestrator.services.assignments import make_assignment
from orchestrator.services.checkpoints import Commit
from orchestrator.services.context import Context
from orchestrator.services.evaluation_results import Result
from orchestrator.services.leases import Begun
from worker.shared.messages import (
    Assignment,
    Directive,
    Failure,
    Finish,
    Message,
    Offer,
    OfferReply,
    Release,
    Report,
    Started,
    StartRequest,
    Ticket,
    merged,
    signed_message,
)
from worker.shared.results import StoredAnswers, StoredExport

_MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)

MAX_LINE = 1 << 20
"""In characters. All messages of workers are much shorter, and longer lines are ignored."""

_REPORT = '{"kind":"report"'

MAX_TOGETHER = 500
"""Maximum number of reports that are merged into one."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """A worker that can call requests its job. One that cannot sends `Started`."""

    lease: str
    request: StartRequest


WorkerMessage = Message | Start
Reply = Assignment | Directive | OfferReply | Ticket | None


@dataclass(frozen=True, kw_only=True)
class CheckedMessage:
    """A message, and the store's answer about the file that it names. Made by `check`.

    `refusal` is why an offered checkpoint is refused. `head_damaged` says that the head, which a session could not
    load, is damaged. `answers` are those of a finished evaluation.
    """

    message: WorkerMessage
    refusal: str = ""
    head_damaged: bool = False
    answers: Result | None = None


Applied = Begun | Directive | Commit | Lease | None
"""The result of `apply`, for `conclude`."""


@overload
def receive(ctx: Context, message: Start) -> Assignment: ...
@overload
def receive(ctx: Context, message: Report) -> Directive: ...
@overload
def receive(ctx: Context, message: Offer) -> OfferReply: ...
@overload
def receive(ctx: Context, message: Started | Release) -> None: ...
@overload
def receive(ctx: Context, message: Finish) -> Ticket | None: ...
@overload
def receive(ctx: Context, message: WorkerMessage) -> Reply: ...
def receive(ctx: Context, message: WorkerMessage) -> Reply:
    """Handle one complete message in a transaction of its own. The HTTP routes share transactions among messages.

    Raises `UnavailableError` if it must be sent again, and other `TrainhopError`s if it is refused.
    """
    checked = check(ctx, message)
    with ctx.uow() as tx:
        applied = apply(ctx, tx, checked)
    return conclude(ctx, message, applied)


def asks_store_before(message: WorkerMessage) -> bool:
    """Whether `check` calls a store, and so may be slow."""
    match message:
        case Offer():
            return True
        case Finish(failure=failure):
            return failure is None or failure.bad_checkpoint is not None
        case _:
            return False


def asks_store_after(message: WorkerMessage, applied: Applied) -> bool:
    """Whether `conclude` calls a store, and so may be slow."""
    return isinstance(message, Start) or (isinstance(applied, Commit) and applied.pruned)


def check(ctx: Context, message: WorkerMessage) -> CheckedMessage:
    """Read back from the store the file that the message names, before the transaction."""
    match message:
        case Offer():
            return CheckedMessage(message=message, refusal=checkpoints.check_offer(ctx, message))
        case Finish(failure=Failure(bad_checkpoint=str(sha256))):
            return CheckedMessage(message=message, head_damaged=finishes.is_head_damaged(ctx, message, sha256))
        case Finish(failure=None, answers=StoredAnswers() as answers):
            return CheckedMessage(message=message, answers=finishes.check_answers(ctx, message, answers))
        case Finish(failure=None, export=StoredExport() as export):
            finishes.check_export(ctx, message, export)
        case Finish(failure=None):
            finishes.check_adapter(ctx, message)
        case _:
            pass
    return CheckedMessage(message=message)


def apply(ctx: Context, tx: Transaction, checked: CheckedMessage) -> Applied:
    """Write one message. Every worker message is applied here. Applying it again changes nothing.

    An error is a `TrainhopError`, and is raised before anything is written.
    """
    match checked.message:
        case Start() | Started() as message:
            fence = message.fence if isinstance(message, Started) else None
            return leases.begin(ctx, tx, message.lease, message.request, fence)
        case Report() as message:
            return leases.report(ctx, tx, message)
        case Offer() as message:
            return checkpoints.commit(ctx, tx, message, checked.refusal)
        case Release() as message:
            return leases.release(ctx, tx, message)
        case Finish() as message:
            return finishes.finish(ctx, tx, message, head_damaged=checked.head_damaged, answers=checked.answers)


def conclude(ctx: Context, message: WorkerMessage, applied: Applied) -> Reply:
    """Do what follows once the message is committed, and return the reply for the worker."""
    match message, applied:
        case Start(), Begun():
            return make_assignment(ctx, applied)
        case Offer(), Commit():
            if applied.pruned:
                checkpoints.sweep(ctx)
            return applied.reply
        case Report(), Directive():
            return applied
        case Finish(), Lease():
            ctx.wake()
            token = ctx.tokens.for_lease(applied.id)
            return Ticket(lease=applied.id, token=token, budget_s=applied.budget_s, fence=applied.fence)
        case ((Release() | Finish()), _):
            ctx.wake()
        case _:
            pass
    return None


class ApplyResult(StrEnum):
    """What became of a message that needs no reply.

    RETRY: something outside did not answer. OUT_OF_ORDER: the message builds on a checkpoint that is not known here, so
    an earlier message was lost. The machine's own record will contain it.
    """

    TAKEN = "taken"
    REFUSED = "refused"
    RETRY = "later"
    OUT_OF_ORDER = "early"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one line, with the reason if it was not applied."""

    result: ApplyResult
    reason: str = ""


def apply_line(ctx: Context, lease_id: str, text: str) -> Outcome:
    """Apply one message in JSON, or return why not. Applying it again is harmless. Malformed text raises no error."""
    message = _parse(lease_id, text)
    if isinstance(message, Outcome):
        return message
    if _builds_on_the_unknown(ctx, message):
        return Outcome(result=ApplyResult.OUT_OF_ORDER, reason="an earlier message is missing")
    return _receive(ctx, message)


def _parse(lease_id: str, text: str) -> Message | Outcome:
    if len(text) > MAX_LINE:
        return Outcome(result=ApplyResult.REFUSED, reason=f"is longer than {MAX_LINE} characters")
    try:
        message = _MESSAGE.validate_json(text)
    except (ValidationError, RecursionError):
        return Outcome(result=ApplyResult.REFUSED, reason="is not a complete message")
    if message.lease != lease_id:
        return Outcome(result=ApplyResult.REFUSED, reason=f"belongs to lease {message.lease}")
    return message


def _receive(ctx: Context, message: Message) -> Outcome:
    if isinstance(message, Finish):  # nobody waits for the reply, and its machine may be gone
        message = message.model_copy(update={"can_continue": False})
    try:
        receive(ctx, message)
    except UnavailableError as error:
        return Outcome(result=ApplyResult.RETRY, reason=str(error))
    except TrainhopError as error:
        return Outcome(result=ApplyResult.REFUSED, reason=str(error))
    return Outcome(result=ApplyResult.TAKEN)


def _builds_on_the_unknown(ctx: Context, message: Message) -> bool:
    match message:
        case Offer():
            before = message.manifest.parent
        case Release() | Finish():
            before = message.head
        case _:
            return False
    if before is None:
        return False
    with ctx.uow() as tx:
        lease = tx.leases.get(message.lease)
        return lease is not None and lease.state.is_live and tx.checkpoints.get(lease.job_id, before) is None


@dataclass(kw_only=True)
class LogReader:
    """Reads one session's output, which starts again at every new connection.

    `seq` is the last message that was handled. Messages up to it are skipped without a call to the database.
    `out_of_order_seq` is the message at which the last reading stopped as OUT_OF_ORDER, and `reason` why it stopped.
    """

    ctx: Context
    lease_id: str
    seq: int = 0
    out_of_order_seq: int = 0
    reason: str = ""

    def read(self, lines: Iterable[str]) -> ApplyResult:
        """Apply the lease's own lines in their order and ignore all others.

        It stops at a line that must be tried again (RETRY). It also stops at a line that is OUT_OF_ORDER, because the
        output may be complete when it is read again. If that line is OUT_OF_ORDER again, reading continues, so that
        reports arrive.
        """
        token, result = self.ctx.tokens.for_lease(self.lease_id), ApplyResult.TAKEN
        for line in lines:
            text = signed_message(token, line) if len(line) <= MAX_LINE else None
            seq = _seq(text) if text is not None else 0
            skips = result is ApplyResult.OUT_OF_ORDER and text is not None and not text.startswith(_REPORT)
            if text is None or seq <= self.seq or skips:
                continue
            outcome = apply_line(self.ctx, self.lease_id, text)
            if outcome.result in {ApplyResult.RETRY, ApplyResult.OUT_OF_ORDER}:
                result, self.reason = outcome.result, outcome.reason
            if result is ApplyResult.RETRY:
                return result
            if result is ApplyResult.OUT_OF_ORDER and self.out_of_order_seq != seq:
                self.out_of_order_seq = seq
                return result
            if result is ApplyResult.TAKEN:
                self.seq = seq
        return result


def _seq(text: str) -> int:
    try:
        return int(json.loads(text).get("seq", 0))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return 0


def replay(ctx: Context, lease_id: str, lines: Sequence[str]) -> bool:
    """Apply the messages that an ended session wrote, oldest first. False if that must be tried again later.

    A killed process leaves a torn last line, and a zombie leaves a stale message. Neither is an error. A message that
    is still missing will never come, so no message counts as OUT_OF_ORDER any more.
    """
    withdrawn = {seq for line in lines if '"withdrawn"' in line[:20] and (seq := _withdrawn(line))}
    read = [m for line in lines if not isinstance(m := _parse(lease_id, line), Outcome) and m.seq not in withdrawn]
    return all(_receive(ctx, message).result is not ApplyResult.RETRY for message in _together(read))


def _together(messages: Iterable[Message]) -> Iterator[Message]:
    """Merge reports that follow each other. A session without a connection leaves thousands of them."""
    for are_reports, group in groupby(messages, lambda message: isinstance(message, Report)):
        if are_reports:
            reports = [m for m in group if isinstance(m, Report)]
            yield from (merged(reports[i : i + MAX_TOGETHER]) for i in range(0, len(reports), MAX_TOGETHER))
        else:
            yield from group


def _withdrawn(line: str) -> int:
    try:
        return int(json.loads(line)["withdrawn"])
    except (ValueError, TypeError, KeyError):
        return 0
