"""What a session does differently on a machine that cannot call the server."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from worker.agent import hardware, transfers
from worker.agent.saver import Kept
from worker.shared.messages import PROTOCOL_VERSION, Assignment, Grant, GrantKind, StartRequest, Ticket

SPARE_GRANTS = 2
"""Grants that the cadence leaves for the last save and for one that went wrong."""


class KeepFolder:
    """The folder that the provider hands over when the session ends: the outbox, and files that no upload took.

    Files lie there under the key that they will have in the store, with `__` for each `/`.
    """

    def __init__(self, folder: Path, assignment: Assignment) -> None:
        self._folder, self._prefix = folder, f"jobs/{assignment.job}/f{assignment.fence}/"
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def outbox(self) -> Path:
        """Where every message of the session is written down."""
        return self._folder / "outbox.jsonl"

    def take(self, source: Path) -> Kept:
        """Move a file here; raises `OSError`."""
        key = f"{self._prefix}{secrets.token_hex(8)}{source.suffix}"
        path = self._folder / key.replace("/", "__")
        shutil.move(source, path)
        return Kept(key, path)


def start_request() -> StartRequest:
    """Who we are, once per process."""
    return StartRequest(
        protocol=PROTOCOL_VERSION,
        nonce=secrets.token_hex(16),
        hardware=hardware.probe(),
        versions=hardware.versions(),
        image=hardware.image(),
    )


def assignment_of(ticket: Ticket, began: float) -> Assignment | None:
    """What a ticket brings along for a machine that cannot call, less the time since `began`; None if it can."""
    if ticket.server_url is not None or ticket.assignment is None:
        return None
    left = ticket.assignment.seconds_left - (time.monotonic() - began)
    return ticket.assignment.model_copy(update={"seconds_left": left})


def uploads_work(uploads: Sequence[Grant]) -> bool:
    """Whether the grants that came along can be used from here; asked once, of the first."""
    return bool(uploads) and transfers.probe(uploads[0])


def least_interval_s(seconds_left: float, uploads: Sequence[Grant]) -> float:
    """Seconds between saves that make the counted grants last for the whole session."""
    count = sum(grant.kind is GrantKind.CHECKPOINT for grant in uploads)
    return seconds_left / max(1, count - SPARE_GRANTS) if count else 0.0
