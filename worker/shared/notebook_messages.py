"""What a notebook and the server say to each other before there is a lease, and by documents where neither can call."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from worker.shared.messages import Action, Directive, Hardware, Ticket, Wire

Nonce = Annotated[str, Field(max_length=64)]


class ClaimRequest(Wire):
    """A notebook asks for its job with the code it was made with. `nonce` is made once per run: asking twice is harmless."""

    protocol: int
    code: Annotated[str, Field(max_length=100)]
    nonce: Nonce
    hardware: Hardware
    runs_in: Literal["colab", "kaggle", "jupyter"] = "jupyter"


class Claimed(Wire):
    """The job is this notebook's: what its worker process is handed, and what a person is shown."""

    ticket: Ticket
    fence: int
    job: str
    name: str
    step: int
    total_steps: int


class MailboxRequest(Wire):
    """What a notebook has to say, in a document that only it writes: its claim, or signed lines that were not heard yet."""

    nonce: Nonce
    claim: ClaimRequest | None = None
    lines: tuple[str, ...] = ()


class MailboxReply(Wire):
    """What the server says to the run with this `nonce`, in a document that only it writes.

    `taken` is true from the claim on; `heard` is the number of the newest line it has dealt with; `over` says why the lease
    counts no more.
    """

    nonce: Nonce
    refused: str = ""
    taken: bool = False
    claimed: Claimed | None = None
    heard: int = 0
    directive: Directive = Directive(action=Action.CONTINUE)
    over: str = ""
