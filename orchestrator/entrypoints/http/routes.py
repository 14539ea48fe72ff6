"""Routes of the API: a request's JSON is measured before it is read, and answers are written in the endpoint's thread.

The event loop serves everyone, so nothing that grows with a request or an answer runs on it.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import re
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from orchestrator.domain.errors import InvalidError
from worker.shared.wire import is_larger_than

PREFIX = "/api/v1"
MAX_VALUES = 5_000
"""Values in the JSON of a request. A job file has fewer than a hundred."""
MAX_DEPTH = 32
SMALL_BYTES = 64 << 10
"""A larger body is parsed in a thread."""
_ESCAPED = re.compile(rb"(?<!\\)(\\++)u0000")


def holds_nul(body: bytes) -> bool:
    """Whether JSON has a NUL character, raw or escaped. An even number of backslashes is not an escape."""
    if b"\0" in body:
        return True
    return b"\\u0000" in body and any(len(found[1]) % 2 for found in _ESCAPED.finditer(body))


async def aside(body: bytes, work: Callable[[], Any]) -> Any:
    """Run work that grows with this body, in a thread if the body is large."""
    return work() if len(body) <= SMALL_BYTES else await run_in_threadpool(work)


def check_json(body: bytes) -> Any:
    """The parsed JSON of a request. Raises `InvalidError` if it is too much to look at, and `ValueError` if it is none.

    PostgreSQL cannot store NUL characters, so they are refused here.
    """
    if holds_nul(body):
        raise InvalidError("The body has a NUL character. Remove it.", [("", "NUL characters are not allowed")])
    found = json.loads(body)
    if is_larger_than(found, values=MAX_VALUES, depth=MAX_DEPTH):
        words = f"must have at most {MAX_VALUES} values in {MAX_DEPTH} levels"
        raise InvalidError("The body has too many values. Send fewer.", [("", words)])
    return found


class ApiRoute(APIRoute):
    """A route of the API. Its JSON is limited, and a model that its endpoint returns is written in the same thread."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        if not inspect.iscoroutinefunction(endpoint) and not inspect.isasyncgenfunction(endpoint):
            endpoint = _written(endpoint, options.get("status_code") or 200)
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        inner = super().get_route_handler()

        async def checked(request: Request) -> Response:
            if self.body_field is not None:
                body = await request.body()
                with contextlib.suppress(ValueError, RecursionError):  # FastAPI parses it again and explains the error
                    # Kept where Starlette keeps it, so that it is parsed once.
                    request._json = await aside(body, lambda: check_json(body))  # noqa: SLF001
            return await inner(request)

        return checked


def _written(endpoint: Callable[..., Any], status: int) -> Callable[..., Any]:
    @wraps(endpoint)
    def written(*arguments: Any, **named: Any) -> Any:
        answer = endpoint(*arguments, **named)
        if isinstance(answer, BaseModel):
            return Response(answer.model_dump_json(), status, media_type="application/json")
        return answer

    return written
