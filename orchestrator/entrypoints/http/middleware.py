"""Checks on every request: its host, its origin and the size of its body."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.config import Settings
from orchestrator.entrypoints.cli.output import size
from orchestrator.entrypoints.http.patience import PIECE_S, punctual
from orchestrator.entrypoints.http.routes import PREFIX
from worker.shared.loopback import HOSTS

MAX_JSON_BYTES = 1 << 20
MAX_MESSAGE_BYTES = 4 << 20
"""For workers. An offer has the manifest of its checkpoint, which can name each of a large model's parameters."""
MAX_QUERY_BYTES = 16 << 10
MAX_OF_STRANGERS = 64 << 10
"""Body limit without a valid token, because most endpoints parse the body before authentication."""
_MESSAGES = re.compile(rf"{PREFIX}/leases/[^/]+/[a-z]+")
_UPLOADS = re.compile(rf"{PREFIX}/(datasets|adapters|blobs/.*)|/submit(/data|/clean)?|/v1/files")
_HEADERS = [
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"),
    (b"x-content-type-options", b"nosniff"),
    # Not `no-referrer`, because browsers then send "null" as the Origin of our own forms.
    (b"referrer-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
]
_UNLESS_SAID = (b"cache-control", b"no-store")
"""Responses are private by default, because most are for one member and some have a secret."""


Refuse = Callable[[Request, int, str], Awaitable[Response]]
"""Builds a response from a status and a message, in the format that the request accepts."""

Knows = Callable[[Request], Awaitable[bool]]
"""Whether this request has a valid token."""


def hosts(settings: Settings) -> frozenset[str]:
    """The host names that this server accepts. A foreign page's DNS name is never one of them."""
    named = [settings.host, *settings.allowed_hosts]
    if settings.public_url and (public := urlsplit(settings.public_url).hostname):
        named.append(public)
    return HOSTS | {name.lower() for name in named}


class Gate:
    """Middleware around the application. It refuses a wrong `Host` (DNS rebinding) and a foreign `Origin` (CSRF)."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        allowed: frozenset[str],
        upload_bytes: int,
        refuse: Refuse,
        knows: Knows,
        public_url: str | None = None,
        piece_s: float = PIECE_S,
    ) -> None:
        self._app, self._allowed, self._upload_bytes = app, allowed, upload_bytes
        self._refuse, self._knows, self._piece_s = refuse, knows, piece_s
        self._public = _site(public_url) if public_url else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        send = _with_headers(send)
        refusal, limit = self._refusal(scope, headers), 0
        if refusal is None:
            limit = await self._limit(scope, headers)
            refusal = (413, _too_large(limit)) if _announced(headers) > limit else None
        if refusal is not None:
            answer = await self._refuse(Request(scope), *refusal)
            await answer(scope, receive, send)
            return
        await self._app(scope, _counted(punctual(receive, piece_s=self._piece_s), limit), send)

    async def _limit(self, scope: Scope, headers: dict[bytes, bytes]) -> int:
        """The maximum size of the body. Uploads are read only after authentication."""
        if _UPLOADS.fullmatch(scope["path"]) and not _is_plain_form(headers):
            return self._upload_bytes
        small = min(MAX_OF_STRANGERS, MAX_JSON_BYTES)
        if b"transfer-encoding" not in headers and _announced(headers) <= small:
            return small
        known = MAX_MESSAGE_BYTES if _MESSAGES.fullmatch(scope["path"]) else MAX_JSON_BYTES
        return known if await self._knows(Request(scope)) else small

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        host = headers.get(b"host", b"").decode("latin-1")
        if _hostname(host) not in self._allowed:
            return 421, f"The host {host!r} is not allowed. Add it to TRAINHOP_ALLOWED_HOSTS."
        origin = headers.get(b"origin")
        if origin is not None and not self._is_ours(origin.decode("latin-1"), scope["scheme"], host):
            return 403, (
                "The request comes from a page of another site. Use the dashboard's own address, and behind a proxy "
                "set TRAINHOP_PUBLIC_URL to it."
            )
        if "\0" in scope["path"] or b"%00" in scope["query_string"]:
            return 422, "The URL has a NUL character. Remove it."
        if len(scope["query_string"]) > MAX_QUERY_BYTES:
            return 414, f"The query is larger than {size(MAX_QUERY_BYTES)}."
        return None

    def _is_ours(self, origin: str, scheme: str, host: str) -> bool:
        """Whether the origin has the request's scheme, host and port, or is the public URL.

        Other accepted host names do not count: another server's page at http://localhost is a foreign page.
        """
        site = _site(origin)
        if site is None or site == self._public:
            return site is not None
        is_public = self._public is not None and _site(f"{self._public[0]}://{host}") == self._public
        return site == _site(f"{scheme}://{host}") and not is_public


def _is_plain_form(headers: dict[bytes, bytes]) -> bool:
    """Whether the body is a form without files, which is read into memory."""
    return headers.get(b"content-type", b"").lower().startswith(b"application/x-www-form-urlencoded")


def _site(url: str) -> tuple[str, str | None, int | None] | None:
    """The origin of a URL: scheme, host and port. None for an invalid URL."""
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None


def _hostname(host: str) -> str:
    name = host.rpartition(":")[0] if re.search(r":\d*$", host) and not host.endswith("]") else host
    return name.strip("[]").lower()


def _announced(headers: dict[bytes, bytes]) -> int:
    length = headers.get(b"content-length", b"0")
    return int(length[:20]) if length.isdigit() else 0


def _too_large(limit: int) -> str:
    words = f"The body is larger than {size(limit)}."
    return f"{words} Larger bodies need a valid token." if limit == MAX_OF_STRANGERS else words


def _counted(receive: Receive, limit: int) -> Receive:
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise HTTPException(413, _too_large(limit))
        return message

    return counted


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            said = list(message.get("headers", ()))
            if not any(name.lower() == _UNLESS_SAID[0] for name, _ in said):
                said.append(_UNLESS_SAID)
            message["headers"] = [*said, *_HEADERS]
        await send(message)

    return sending
