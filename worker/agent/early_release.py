"""The last words of a session whose worker never began, in the same form as a worker's own.

Standard library only. Where the server can be called it is; otherwise the words are a signed line of the session's output.
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


def release(ticket: dict[str, Any], detail: str, *, cause: str, reason: str = "unfit") -> dict[str, Any] | None:
    """A `worker.shared.messages.Release`; None for a ticket of an older server, which does not say its fence."""
    given = ticket.get("assignment") or {}
    fence = given.get("fence", ticket.get("fence"))
    if fence is None:
        return None
    return {
        "kind": "release",
        "lease": ticket["lease"],
        "fence": fence,
        "seq": 1,
        "step": given.get("resume_step", 0),
        "reason": reason,
        "detail": detail[:MAX_DETAIL],
        "cause": cause,
    }


def say(ticket: dict[str, Any], said: dict[str, Any] | None, write: Callable[[str], None]) -> None:
    """Tell the server; one that does not hear it finds the words with what the session leaves, or the session ended."""
    if said is None:
        return
    message = json.dumps(said)
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
