"""HTTP methods: which ones a path has, and HEAD for every path that has GET (RFC 9110, section 9.3.2)."""

from __future__ import annotations

from collections.abc import Iterable

import anyio
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")


def allowed(routes: Iterable[BaseRoute], scope: Scope) -> set[str]:
    """The methods of all routes of this path."""
    routes = list(routes)
    return {m for m in METHODS if any(r.matches({**scope, "method": m})[0].name == "FULL" for r in routes)}


class HeadRequests:
    """Answers HEAD as GET without the body, where no route does it at a lower cost."""

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app, self._routes = app, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD" or "HEAD" in allowed(self._routes, scope):
            await self._app(scope, receive, send)
            return
        with anyio.CancelScope() as until_the_body:

            async def headers_only(message: Message) -> None:
                if message["type"] == "http.response.start":
                    await send(message)
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    until_the_body.cancel()  # a stream of events would have no end

            await self._app({**scope, "method": "GET"}, receive, headers_only)
