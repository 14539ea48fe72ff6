"""Connections whose request does not arrive are closed, so that half-sent requests hold none for ever."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive
from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEADERS_S = 15.0
"""Time for the headers of a request, from the connection or its first byte."""
PIECE_S = 30.0
"""Time for the next piece of a body."""
BODY_S, BYTES_PER_S = 60.0, 16 << 10
"""A whole body may take this long, and longer if it arrives at this rate."""
_TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


_Protocol: Any = AutoHTTPProtocol


class _Patient(_Protocol):
    headers_s = HEADERS_S
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Start the timer if the next headers are awaited, and stop it once they have arrived."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()
        elif self._timer is None and not self.transport.is_closing():
            self._timer = asyncio.get_running_loop().call_later(self.headers_s, self._close)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        self._timer = None
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self.transport.write(_TOO_LATE)
            self.transport.close()


def protocol(headers_s: float = HEADERS_S) -> type[asyncio.Protocol]:
    """The protocol of uvicorn, which closes a connection whose headers take longer than this."""
    return type("Patient", (_Patient,), {"headers_s": headers_s})


def punctual(receive: Receive, *, piece_s: float = PIECE_S, body_s: float = BODY_S) -> Receive:
    """The body of a request. Raises 408 if it stops to arrive, or arrives too slowly."""
    loop = asyncio.get_running_loop()
    began, seen, is_whole = loop.time(), 0, False

    async def arriving() -> Message:
        nonlocal seen, is_whole
        if is_whole:  # what follows is the end of the connection
            return await receive()
        left = began + body_s + seen / BYTES_PER_S - loop.time()
        try:
            async with asyncio.timeout(max(0.0, min(piece_s, left))):
                message = await receive()
        except TimeoutError:
            raise HTTPException(
                408, "The body did not arrive in time. Send it again over a faster connection.", {"Connection": "close"}
            ) from None
        seen += len(message.get("body", b""))
        is_whole = not message.get("more_body", False)
        return message

    return arriving
