"""What an offline session does differently."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from worker.agent import hardware, transfers
from worker.agent.saver import Kept
from worker.shared.messages import Assignment, Grant, GrantKind, StartRequest, Ticket
from worker.shared.wire import PROTOCOL_VERSION

SPARE_GRANTS = 2
"""Grants reserved for the last save and for one failed upload."""


class KeepFolder:
    """The folder that the provider hands over when the session ends: the outbox, and files that could not be uploaded.

    A file's name is its key in the store, with `__` in place of each `/`.
    """

    def __init__(self, folder: Path, assignment: Assignment) -> None:
        self._folder, self._prefix = folder, f"jobs/{assignment.job}/f{assignment.fence}/"
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def outbox(self) -> Path:
        """The file that records every message of the session."""
        return self._folder / "outbox.jsonl"

    def take(self, source: Path) -> Kept:
        """Move a file into this folder. Raises `OSError`."""
        key = f"{self._prefix}{secrets.token_hex(8)}{source.suffix}"
        path = self._folder / key.replace("/", "__")
        shutil.move(source, path)
        return Kept(key, path)


def start_request() -> StartRequest:
    """The start request of this process, with a new nonce."""
    return StartRequest(
        protocol=PROTOCOL_VERSION,
        nonce=secrets.token_hex(16),
        hardware=hardware.probe(),
        versions=hardware.versions(),
        image=hardware.image(),
    )


def assignment_of(ticket: Ticket, began: float) -> Assignment | None:
    """The assignment in an offline session's ticket. None for an online session.

    The time since the monotonic time `began` is deducted from its seconds.
    """
    if ticket.server_url is not None or ticket.assignment is None:
        return None
    left = ticket.assignment.seconds_left - (time.monotonic() - began)
    return ticket.assignment.model_copy(update={"seconds_left": left})


def can_upload(uploads: Sequence[Grant]) -> bool:
    """Whether this machine can use the upload grants in the ticket. Probes the first one."""
    return bool(uploads) and transfers.probe(uploads[0])


def min_interval_s(seconds_left: float, uploads: Sequence[Grant]) -> float:
    """Minimum seconds between saves, so that the fixed number of grants lasts for the whole session."""
    count = sum(grant.kind is GrantKind.CHECKPOINT for grant in uploads)
    return seconds_left / max(1, count - SPARE_GRANTS) if count else 0.0
