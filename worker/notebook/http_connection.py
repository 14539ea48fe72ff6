"""Connects a notebook to a server that it can call."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import httpx

from worker.agent.uplink import HttpUplink, UplinkError
from worker.notebook.connection import Next
from worker.notebook.errors import NotebookError
from worker.shared.certificates import certificates
from worker.shared.messages import Finish, Release
from worker.shared.notebook_messages import Claimed, ClaimRequest

TIMEOUT_S = 60.0
TRIES = 3


class HttpConnection:
    """Implements `Connection` over HTTP. The worker sends its own messages, and the notebook only claims."""

    def __init__(self, server: str) -> None:
        self._server = server.rstrip("/")

    def claim(self, request: ClaimRequest) -> Claimed:
        for _ in range(TRIES):
            with suppress(httpx.HTTPError):
                response = httpx.post(
                    f"{self._server}/api/v1/claims",
                    json=request.model_dump(mode="json"),
                    timeout=TIMEOUT_S,
                    verify=certificates(),
                    trust_env=False,
                )
                if response.is_success:
                    return Claimed.model_validate_json(response.content)
                raise NotebookError(_refusal(response))
        raise NotebookError(
            f"The server at {self._server} does not answer. Nothing was changed. Run this cell again later."
        )

    def outbox(self, home: Path) -> Path:
        return home / "outbox.jsonl"

    def poll(self, log: Path) -> Next:
        return Next.GO_ON

    def flush(self, log: Path) -> bool:
        return True

    def send(self, claimed: Claimed, message: Release | Finish) -> None:
        with suppress(UplinkError):
            uplink = HttpUplink(claimed.ticket)
            uplink.release(message) if isinstance(message, Release) else uplink.finish(message)


def _refusal(response: httpx.Response) -> str:
    with suppress(ValueError, AttributeError):
        if detail := response.json().get("detail"):
            return str(detail)
    return f"The server answered {response.status_code}. Try again in a minute."
