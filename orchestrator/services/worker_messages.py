"""One door for what workers say, whichever way it came: over HTTP, from a provider's log, or left behind in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

from pydantic import TypeAdapter, ValidationError

from orchestrator.domain.errors import TrainhopError, UnavailableError
from orchestrator.ports.providers import Context
from orchestrator.services import checkpoints, leases
from worker.shared.messages import (
    Directive,
    Finish,
    Message,
    Offer,
    OfferReply,
    Release,
    Report,
    Started,
    merged,
    signed_message,
)

_MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)

MAX_LINE = 1 << 20
"""Characters; no message of ours comes near it, and nothing longer is looked at."""


_REPORT = '{"kind":"report"'

MAX_TOGETHER = 500
"""Reports that are applied as one."""


def take(ctx: Context, message: Message) -> Directive | OfferReply | None:
    """Apply one message; what it returns is the answer for the worker, if it still listens."""
    match message:
        case Started():
            return leases.started(ctx, message)
        case Report():
            return leases.report(ctx, message)
        case Offer():
            return checkpoints.offer(ctx, message)
        case Release():
            return leases.release(ctx, message)
        case Finish():
            return leases.finish(ctx, message)


class ApplyResult(StrEnum):
    """What became of a message that nobody waits for an answer to.

    LATER: something outside did not answer, try again. EARLY: it builds on a checkpoint that we have not heard of, so a
    message before it was lost on the way; what the machine wrote down will tell.
    """

    TAKEN = "taken"
    REFUSED = "refused"
    RETRY = "later"
    OUT_OF_ORDER = "early"


@dataclass(frozen=True, kw_only=True)
class Applied:
    """The fate of one message, with words where it was not taken."""

    fate: ApplyResult
    words: str = ""


def apply_text(ctx: Context, lease_id: str, text: str) -> Applied:
    """Apply one message in JSON, or say in words why not. Hearing it again is harmless; nothing malformed is an error."""
    message = _read(lease_id, text)
    if isinstance(message, Applied):
        return message
    if _builds_on_the_unknown(ctx, message):
        return Applied(fate=ApplyResult.OUT_OF_ORDER, words="a message before this one is missing")
    return _apply(ctx, message)


def _read(lease_id: str, text: str) -> Message | Applied:
    if len(text) > MAX_LINE:
        return Applied(fate=ApplyResult.REFUSED, words=f"is longer than {MAX_LINE} characters")
    try:
        message = _MESSAGE.validate_json(text)
    except (ValidationError, RecursionError):
        return Applied(fate=ApplyResult.REFUSED, words="is not a whole message")
    if message.lease != lease_id:
        return Applied(fate=ApplyResult.REFUSED, words=f"speaks of lease {message.lease}")
    return message


def _apply(ctx: Context, message: Message) -> Applied:
    try:
        take(ctx, message)
    except UnavailableError as error:
        return Applied(fate=ApplyResult.RETRY, words=str(error))
    except TrainhopError as error:
        return Applied(fate=ApplyResult.REFUSED, words=str(error))
    return Applied(fate=ApplyResult.TAKEN)


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
        lease = tx.lease(message.lease)
        return lease is not None and lease.state.is_live and tx.checkpoint(lease.job_id, before) is None


@dataclass(kw_only=True)
class LogReader:
    """Listens to one session's output, which begins anew whenever the connection does.

    `seq` is the last message that was dealt with: what comes again is passed over without asking the database.
    """

    ctx: Context
    lease_id: str
    seq: int = 0
    early: int = 0
    words: str = ""

    def listen(self, lines: Iterable[str]) -> ApplyResult:
        """Apply the lease's own lines in their order and ignore all others.

        It stops at one that must be tried LATER. It stops at one that came too EARLY, too, since the same output read
        anew may be whole; if it is not, it goes on for the sake of reports.
        """
        token, fate = self.ctx.tokens.for_lease(self.lease_id), ApplyResult.TAKEN
        for line in lines:
            text = signed_message(token, line) if len(line) <= MAX_LINE else None
            seq = _seq(text) if text is not None else 0
            if text is None or seq <= self.seq or (fate is ApplyResult.OUT_OF_ORDER and not text.startswith(_REPORT)):
                continue
            heard = apply_text(self.ctx, self.lease_id, text)
            if heard.fate in {ApplyResult.RETRY, ApplyResult.OUT_OF_ORDER}:
                fate, self.words = heard.fate, heard.words
            if fate is ApplyResult.RETRY:
                return fate
            if fate is ApplyResult.OUT_OF_ORDER and self.early != seq:
                self.early = seq
                return fate
            if fate is ApplyResult.TAKEN:
                self.seq = seq
        return fate


def _seq(text: str) -> int:
    try:
        said = json.loads(text)
        return int(said.get("seq", 0))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return 0


def replay(ctx: Context, lease_id: str, lines: Sequence[str]) -> bool:
    """Apply what a session that has ended wrote down, oldest first; False where that must be tried again later.

    A torn last line is what a killed process leaves, and a stale message is what a zombie leaves: neither is an error.
    What is still missing now will never come, so that nothing counts as early any more.
    """
    withdrawn = {seq for line in lines if '"withdrawn"' in line[:20] and (seq := _withdrawn(line))}
    read = [m for line in lines if not isinstance(m := _read(lease_id, line), Applied) and m.seq not in withdrawn]
    return all(_apply(ctx, message).fate is not ApplyResult.RETRY for message in _together(read))


def _together(messages: Iterable[Message]) -> Iterator[Message]:
    """Reports that follow each other as one: a session that nobody heard has thousands."""
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
