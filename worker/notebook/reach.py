"""What a notebook's session needs of the way to its server."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Protocol

from worker.shared.messages import Finish, Release
from worker.shared.notebook_messages import Claimed, ClaimRequest


class Next(Enum):
    """What the worker is to do, as far as the server's word came this way. STOP: its lease counts no more."""

    GO_ON = "go on"
    LEAVE = "leave"
    PAUSE = "pause"
    CANCEL = "cancel"
    STOP = "stop"


class Reach(Protocol):
    """A way to the server."""

    def claim(self, asked: ClaimRequest) -> Claimed:
        """Exchange the code for a lease; raises `NotebookError` with the server's own words."""
        ...

    def outbox(self, home: Path) -> Path:
        """Where the worker in this folder writes its messages down."""
        ...

    def tend(self, log: Path) -> Next:
        """Called about every second while the worker runs; `log` is its output."""
        ...

    def settle(self, log: Path) -> bool:
        """The worker has ended: whether the server has heard all of it."""
        ...

    def say(self, claimed: Claimed, message: Release | Finish) -> None:
        """Speak for a worker that cannot; if the server does not hear it, the lease runs out by itself."""
        ...
