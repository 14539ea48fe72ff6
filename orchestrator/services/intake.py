"""One door for what workers say, whichever way it came: over HTTP, from a provider's log, or left behind in a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydantic import TypeAdapter, ValidationError

from orchestrator.domain.errors import TrainhopError, UnavailableError
from orchestrator.ports import Context
from orchestrator.services import checkpoints, leases
from worker.protocol import Directive, Finish, Message, Offer, OfferReply, Release, Report, Started, signed_message

_MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)

_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
"""Not every database keeps NUL characters, and no message of ours needs one."""

LONGEST_LINE = 1 << 20
"""Characters; no message of ours comes near it, and nothing longer is looked at."""


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


class Fate(StrEnum):
    """What became of a message that nobody waits for an answer to.

    LATER: something outside did not answer, try again. EARLY: it builds on a checkpoint that we have not heard of, so a
    message before it was lost on the way; what the machine wrote down will tell.
    """

    TAKEN = "taken"
    REFUSED = "refused"
    LATER = "later"
    EARLY = "early"


@dataclass(frozen=True, kw_only=True)
class Heard:
    """The fate of one message, with words where it was not taken."""

    fate: Fate
    words: str = ""


def hear(ctx: Context, lease_id: str, text: str) -> Heard:
    """Apply one message in JSON, or say in words why not. Hearing it again is harmless; nothing malformed is an error."""
    message = _read(lease_id, text)
    if isinstance(message, Heard):
        return message
    if _builds_on_the_unknown(ctx, message):
        return Heard(fate=Fate.EARLY, words="a message before this one is missing")
    return _apply(ctx, message)


def _read(lease_id: str, text: str) -> Message | Heard:
    if len(text) > LONGEST_LINE:
        return Heard(fate=Fate.REFUSED, words=f"is longer than {LONGEST_LINE} characters")
    try:
        message = _MESSAGE.validate_json(_NUL.sub(r"\1\\ufffd", text))
    except (ValidationError, RecursionError):
        return Heard(fate=Fate.REFUSED, words="is not a whole message")
    if message.lease != lease_id:
        return Heard(fate=Fate.REFUSED, words=f"speaks of lease {message.lease}")
    return message


def _apply(ctx: Context, message: Message) -> Heard:
    try:
        take(ctx, message)
    except UnavailableError as error:
        return Heard(fate=Fate.LATER, words=str(error))
    except TrainhopError as error:
        return Heard(fate=Fate.REFUSED, words=str(error))
    return Heard(fate=Fate.TAKEN)


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
class Ear:
    """Listens to one session's output, which begins anew whenever the connection does.

    `seq` is the last message that was dealt with: what comes again is passed over without asking the database.
    """

    ctx: Context
    lease_id: str
    seq: int = 0
    words: str = ""

    def listen(self, lines: Iterable[str]) -> Fate:
        """Apply the lease's own lines in their order and ignore all others; stops at one that is LATER or EARLY."""
        token = self.ctx.tokens.for_lease(self.lease_id)
        for line in lines:
            text = signed_message(token, line) if len(line) <= LONGEST_LINE else None
            seq = _seq(text) if text is not None else 0
            if text is None or seq <= self.seq:
                continue
            heard = hear(self.ctx, self.lease_id, text)
            self.words = heard.words
            if heard.fate in {Fate.LATER, Fate.EARLY}:
                return heard.fate
            self.seq = seq
        return Fate.TAKEN


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
    with ctx.uow() as tx:
        lease = tx.lease(lease_id)
    known = lease.last_seq if lease is not None else 0
    for line in lines:
        message = _read(lease_id, line)
        if isinstance(message, Heard) or message.seq in withdrawn:
            continue
        if isinstance(message, Report) and message.seq <= known:
            continue
        if _apply(ctx, message).fate is Fate.LATER:
            return False
    return True


def _withdrawn(line: str) -> int:
    try:
        return int(json.loads(line)["withdrawn"])
    except (ValueError, TypeError, KeyError):
        return 0
