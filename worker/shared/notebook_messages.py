"""Messages between a notebook and the server before there is a lease, and through the mailbox."""

from __future__ import annotations

from typing import Annotated

from pydantic import FailFast, Field

from worker.shared.manifest import Hardware
from worker.shared.messages import Action, Directive, Ticket
from worker.shared.places import PlaceName
from worker.shared.wire import Count, Text, Wire, first_lines

MAX_LINES = 20_000
"""Lines that the server reads at once. They are acknowledged, so the others follow."""

Nonce = Annotated[Text, Field(max_length=64)]


class ClaimRequest(Wire):
    """A notebook claims its job with its code. `nonce` is created once per run, so a repeated claim is safe."""

    protocol: Count
    code: Annotated[Text, Field(max_length=100)]
    nonce: Nonce
    hardware: Hardware
    runs_in: PlaceName = "jupyter"


class Claimed(Wire):
    """The claimed job: the input of its worker process, and data to show."""

    ticket: Ticket
    fence: int
    job: str
    name: str
    step: int
    total_steps: int


class MailboxRequest(Wire):
    """A document that only the notebook writes: its claim, or signed lines that are not acknowledged yet."""

    nonce: Nonce
    claim: ClaimRequest | None = None
    lines: Annotated[tuple[str, ...], FailFast(), first_lines(MAX_LINES)] = ()


class MailboxReply(Wire):
    """A document that only the server writes, for the run with this `nonce`.

    `taken` is true after the claim. `heard` is the number of the last applied line. `over` is the reason why the lease
    ended.
    """

    nonce: Nonce
    refused: str = ""
    taken: bool = False
    claimed: Claimed | None = None
    heard: int = 0
    directive: Directive = Directive(action=Action.CONTINUE)
    over: str = ""
