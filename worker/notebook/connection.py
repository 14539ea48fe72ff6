"""The interface between a notebook's session and its connection to the server."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Protocol

from worker.shared.messages import Finish, Release
from worker.shared.notebook_messages import Claimed, ClaimRequest


class Next(Enum):
    """What the server wants the worker to do. STOP: its lease is no longer valid."""

    GO_ON = "go on"
    LEAVE = "leave"
    PAUSE = "pause"
    CANCEL = "cancel"
    STOP = "stop"


class Connection(Protocol):
    """A connection to the server."""

    def claim(self, request: ClaimRequest) -> Claimed:
        """Exchange the code for a lease. Raises `NotebookError` with the server's message."""
        ...

    def outbox(self, home: Path) -> Path:
        """The file in which the worker in this folder stores its messages."""
        ...

    def poll(self, log: Path) -> Next:
        """Called about every second while the worker runs. `log` is the worker's output."""
        ...

    def flush(self, log: Path) -> bool:
        """Called after the worker has ended. Whether the server has received all its messages."""
        ...

    def send(self, claimed: Claimed, message: Release | Finish) -> None:
        """Send a message for a worker that cannot. If that fails, the lease expires."""
        ...
