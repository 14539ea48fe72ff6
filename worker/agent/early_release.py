"""The release message of a session whose worker never started, in the same form as a worker's own.

Standard library only. The message is posted to the server if the server can be called. Otherwise it becomes a signed
line of the session's output.
"""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worker.shared.signed_lines import signed

MAX_DETAIL = 2_000
"""Characters."""
TIMEOUT_S = 30.0


def release(
    ticket: dict[str, Any], detail: str, *, cause: str, reason: str = "unfit", has_remedy: bool = False
) -> dict[str, Any] | None:
    """A `worker.shared.messages.Release` as a dict. None for a ticket of an older server, which has no fence."""
    assignment = ticket.get("assignment") or {}
    fence = assignment.get("fence", ticket.get("fence"))
    if fence is None:
        return None
    return {
        "kind": "release",
        "lease": ticket["lease"],
        "fence": fence,
        "seq": 1,
        "step": assignment.get("resume_step", 0),
        "reason": reason,
        "detail": detail[:MAX_DETAIL],
        "cause": cause,
        "has_remedy": has_remedy,
    }


def send(ticket: dict[str, Any], release_message: dict[str, Any] | None, write: Callable[[str], None]) -> None:
    """Send the message to the server, or write it to the output and the outbox if the server cannot be called.

    Errors are ignored: without the message the server finds out that the session ended.
    """
    if release_message is None:
        return
    message = json.dumps(release_message)
    if ticket.get("server_url"):
        with contextlib.suppress(OSError, ValueError):
            _post(ticket, message)
        return
    write(signed(ticket["token"], message))
    if folder := (ticket.get("assignment") or {}).get("keep_dir"):
        with contextlib.suppress(OSError), Path(folder, "outbox.jsonl").open("a") as outbox:
            outbox.write(message + "\n")


def _post(ticket: dict[str, Any], message: str) -> None:
    request = urllib.request.Request(  # noqa: S310 - the server's own address
        f"{ticket['server_url']}/api/v1/leases/{ticket['lease']}/release",
        data=message.encode(),
        headers={"Authorization": f"Bearer {ticket['token']}", "Content-Type": "application/json"},
    )
    straight = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    straight.open(request, timeout=TIMEOUT_S).close()
