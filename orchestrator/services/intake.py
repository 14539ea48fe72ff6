"""One door for what workers say, whichever way it came: over HTTP, from a provider's log, or left behind in a folder."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import TypeAdapter, ValidationError

from orchestrator.domain.errors import TrainhopError
from orchestrator.ports import Context
from orchestrator.services import checkpoints, leases
from worker.protocol import Directive, Finish, Message, Offer, OfferReply, Release, Report, Started

_MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)


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


def replay(ctx: Context, lease_id: str, lines: Iterable[str]) -> list[str]:
    """Apply messages that a session left behind, oldest first. Returns what could not be applied, in words.

    A torn last line is what a killed process leaves, and a stale message is what a zombie leaves: neither is an error.
    """
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            message = _MESSAGE.validate_json(line)
        except ValidationError:
            problems.append(f"line {number} is not a whole message")
            continue
        if message.lease != lease_id:
            problems.append(f"line {number} speaks of lease {message.lease}")
            continue
        try:
            take(ctx, message)
        except TrainhopError as error:
            problems.append(f"line {number}: {error}")
    return problems
