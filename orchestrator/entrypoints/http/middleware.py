"""What every request passes first: which host was asked for, which page asked, how large the body is."""

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

MAX_JSON_BYTES = 16 << 20
MAX_OF_STRANGERS = 64 << 10
"""A body is read and parsed before most endpoints look at who asks; a large one costs the server a second of doing nothing else."""
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_UPLOADS = re.compile(r"/api/v1/(datasets|blobs/.*)|/submit(/data)?")
_HEADERS = [
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"),
    (b"x-content-type-options", b"nosniff"),
    # Not `no-referrer`: with that, browsers send the Origin of our own forms as "null".
    (b"referrer-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
]
_UNLESS_SAID = (b"cache-control", b"no-store")
"""Most of what is answered is one person's, and some of it a secret that is shown once."""


Refuse = Callable[[Request, int, str], Awaitable[Response]]
"""Makes an answer of a status and a sentence, in the form that this request wants."""

Knows = Callable[[Request], Awaitable[bool]]
"""Whether this request comes with a token that counts."""


def hosts(settings: Settings) -> frozenset[str]:
    """The host names under which this server may be asked: a foreign page's DNS name never is among them."""
    named = [settings.host, *settings.allowed_hosts]
    if settings.public_url and (public := urlsplit(settings.public_url).hostname):
        named.append(public)
    return _LOOPBACK | {name.lower() for name in named}


class Gate:
    """Stands around the whole application, so that no answer comes past it. A wrong `Host` is refused against DNS rebinding, a foreign `Origin` on every method against CSRF."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        allowed: frozenset[str],
        upload_bytes: int,
        refuse: Refuse,
        knows: Knows,
        public_url: str | None = None,
    ) -> None:
        self._app, self._allowed, self._upload_bytes = app, allowed, upload_bytes
        self._refuse, self._knows = refuse, knows
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
        await self._app(scope, _counted(receive, limit), send)

    async def _limit(self, scope: Scope, headers: dict[bytes, bytes]) -> int:
        """How large the body may be. Uploads are read only after a look at who asks."""
        if _UPLOADS.fullmatch(scope["path"]):
            return self._upload_bytes
        small = min(MAX_OF_STRANGERS, MAX_JSON_BYTES)
        if b"transfer-encoding" not in headers and _announced(headers) <= small:
            return small
        return MAX_JSON_BYTES if await self._knows(Request(scope)) else small

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        host = headers.get(b"host", b"").decode("latin-1")
        if _hostname(host) not in self._allowed:
            return 421, f"this server does not answer for the host {host!r}; TRAINHOP_ALLOWED_HOSTS lists further names"
        origin = headers.get(b"origin")
        if origin is not None and not self._is_ours(origin.decode("latin-1"), host):
            return 403, "requests from other sites' pages are refused"
        if "\0" in scope["path"] or b"%00" in scope["query_string"]:
            return 422, "the address holds a NUL character"
        return None

    def _is_ours(self, origin: str, host: str) -> bool:
        """The page and this request name the same host and port, or the page is on our public address, and there with its TLS.

        None of our other names will do: what another server of this computer shows at http://localhost is not ours.
        """
        site = _site(origin)
        if site is None or site == self._public:
            return site is not None
        is_public = self._public is not None and _site(f"{self._public[0]}://{host}") == self._public
        return urlsplit(origin).netloc.lower() == host.lower() and not is_public


def _site(url: str) -> tuple[str, str | None, int | None] | None:
    """What makes two pages of one origin: scheme, host and port; None for what is no address."""
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
    words = f"what was sent is larger than {size(limit)}"
    return f"{words}; more is taken with a valid token only" if limit == MAX_OF_STRANGERS else words


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
