"""How a notebook reaches a server that it can call."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import httpx

from worker.agent.uplink import HttpUplink, UplinkError
from worker.notebook.errors import NotebookError
from worker.notebook.reach import Next
from worker.shared.messages import Finish, Release
from worker.shared.notebook_messages import Claimed, ClaimRequest

TIMEOUT_S = 60.0
TRIES = 3


class Calling:
    """Implements `Reach` over HTTP: the worker calls by itself, the notebook only claims."""

    def __init__(self, server: str) -> None:
        self._server = server.rstrip("/")

    def claim(self, asked: ClaimRequest) -> Claimed:
        for _ in range(TRIES):
            with suppress(httpx.HTTPError):
                answer = httpx.post(
                    f"{self._server}/api/v1/claims",
                    json=asked.model_dump(mode="json"),
                    timeout=TIMEOUT_S,
                    trust_env=False,
                )
                if answer.is_success:
                    return Claimed.model_validate_json(answer.content)
                raise NotebookError(_refusal(answer))
        raise NotebookError(
            f"the server at {self._server} does not answer: nothing has happened, run this cell again when it does"
        )

    def outbox(self, home: Path) -> Path:
        return home / "outbox.jsonl"

    def tend(self, log: Path) -> Next:
        return Next.GO_ON

    def settle(self, log: Path) -> bool:
        return True

    def say(self, claimed: Claimed, message: Release | Finish) -> None:
        with suppress(UplinkError):
            uplink = HttpUplink(claimed.ticket)
            uplink.release(message) if isinstance(message, Release) else uplink.finish(message)


def _refusal(answer: httpx.Response) -> str:
    with suppress(ValueError, AttributeError):
        if detail := answer.json().get("detail"):
            return str(detail)
    return f"the server answered {answer.status_code}: try again in a minute"
