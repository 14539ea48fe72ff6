"""Errors below `/v1` in OpenAI's form, from the problem documents that the rest of the server writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.entrypoints.http.problems import MEDIA_TYPE

PREFIX = "/v1"
STATUS = {410: 404, 422: 400}
"""Statuses for which OpenAI's API has another one, which its client turns into a class of its own."""
_PLAIN = "application/json"


class OpenAIErrors:
    """Middleware around everything else, so that errors of other middleware have the form, too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_ours = scope["type"] == "http" and scope["path"].startswith(f"{PREFIX}/")
        await self._app(scope, receive, _rewriting(send) if is_ours else send)


def _rewriting(send: Send) -> Send:
    start: Message | None = None
    body = bytearray()

    async def sending(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start" and _is_problem(message):
            start = message
            return
        if start is None:
            await send(message)
            return
        body.extend(message.get("body", b""))
        if not message.get("more_body", False):
            await send(_started(start, rewritten := in_openai_form(bytes(body))))
            await send({"type": "http.response.body", "body": rewritten})

    return sending


def _is_problem(message: Message) -> bool:
    return MutableHeaders(raw=list(message.get("headers", ()))).get("content-type") == MEDIA_TYPE


def _started(message: Message, body: bytes) -> Message:
    headers = MutableHeaders(raw=list(message["headers"]))
    headers["content-type"] = _PLAIN
    if body:  # there is none in the answer to HEAD
        headers["content-length"] = str(len(body))
    status = STATUS.get(message["status"], message["status"])
    if status == 409:  # OpenAI's client would ask again, and the state would be the same
        headers["x-should-retry"] = "false"
    return {"type": "http.response.start", "status": status, "headers": headers.raw}


def in_openai_form(document: bytes) -> bytes:
    """A problem document as OpenAI's error. No document stays none."""
    return json.dumps({"error": _error(json.loads(document))}).encode() if document else b""


def _error(problem: Mapping[str, Any]) -> dict[str, Any]:
    status, faults = problem["status"], problem.get("errors") or [{"pointer": ""}]
    code = str(problem["type"]).rpartition(":")[2].replace("-", "_")
    return {
        "message": problem["detail"],
        "type": _kind(status),
        "param": faults[0]["pointer"].strip("/").replace("/", ".") or None,
        "code": "invalid_api_key" if status == 401 else code,
    }


def _kind(status: int) -> str:
    if status >= 500:
        return "server_error"
    return "rate_limit_error" if status == 429 else "invalid_request_error"
