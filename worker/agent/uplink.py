"""How a worker sends messages to the server: over HTTP, or as lines of its output in an offline session.

UplinkError
├── ServerAway    no reply, or a temporary error: keep working and retry
├── Stale         the lease is over: stop at once
└── Refused       the server rejected the request, and the message is its reason
"""

from __future__ import annotations

import sys
from http.client import NO_CONTENT
from typing import IO, Any, Protocol, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from worker.shared.certificates import certificates
from worker.shared.messages import (
    GRANT_HEADER,
    Action,
    Assignment,
    Directive,
    Finish,
    Grant,
    GrantKind,
    Offer,
    OfferReply,
    Release,
    Report,
    Started,
    StartRequest,
    Ticket,
    sign_line,
)

TIMEOUT_S = 30.0
_ASSIGNMENT, _DIRECTIVE, _REPLY = TypeAdapter(Assignment), TypeAdapter(Directive), TypeAdapter(OfferReply)
_TICKET = TypeAdapter(Ticket)
_GRANTS: TypeAdapter[list[Grant]] = TypeAdapter(list[Grant])
_OURS = "urn:trainhop:problem:"
"""Prefix of the `type` field in every error reply of the server."""
_BLOBS = "/api/v1/blobs/"
_GRANTED = ("datasets", "model", "judge", "uploads")
T = TypeVar("T")
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
_OVER = frozenset({401, 403, 404, 409, 410})


class UplinkError(Exception):
    """The request to the server did not succeed."""


class ServerAway(UplinkError):
    """There was no usable reply. It is unknown whether the server did anything."""


class Stale(UplinkError):
    """This lease is no longer valid."""


class Refused(UplinkError):
    """The server rejected the request."""


class Uplink(Protocol):
    """The server as a worker sees it. Every call may raise any `UplinkError`."""

    def started(self, message: Started) -> None: ...
    def report(self, message: Report) -> Directive: ...
    def offer(self, message: Offer) -> OfferReply: ...
    def release(self, message: Release) -> None: ...
    def finish(self, message: Finish) -> Ticket | None:
        """Returns the ticket with which the session continues, if it does."""
        ...

    def grants(self, fence: int, kind: GrantKind, count: int, *, through_server: bool = False) -> list[Grant]: ...


class HttpUplink:
    """Implements `Uplink` over the worker API of a reachable server.

    Only replies in the server's own format count. A proxy, a tunnel or another program on the same port may reply
    anything while the server is down, and none of that ends a session.
    """

    def __init__(self, ticket: Ticket) -> None:
        self._server_url = ticket.server_url
        self._base = f"{ticket.server_url}/api/v1/leases/{ticket.lease}"
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {ticket.token}"},
            timeout=TIMEOUT_S,
            verify=certificates(),
            trust_env=False,
        )

    def start(self, request: StartRequest) -> Assignment:
        """Request the assignment."""
        found = self.request("start", request.model_dump_json(), _ASSIGNMENT)
        changes = {name: tuple(map(self._reached, getattr(found, name))) for name in _GRANTED}
        resume = self._reached(found.resume) if found.resume is not None else None
        return found.model_copy(update={**changes, "resume": resume})

    def _reached(self, grant: Grant) -> Grant:
        """The grant of a file on the server, with the address at which this machine reaches it."""
        before, path, key = (grant.url or "").partition(_BLOBS)
        if not path or GRANT_HEADER not in grant.headers or before == self._server_url:
            return grant
        return grant.model_copy(update={"url": f"{self._server_url}{path}{key}"})

    def started(self, message: Started) -> None:
        self.start(message.request)

    def report(self, message: Report) -> Directive:
        return self.request("report", message.model_dump_json(exclude_defaults=True), _DIRECTIVE)

    def offer(self, message: Offer) -> OfferReply:
        return self.request("offer", message.model_dump_json(), _REPLY)

    def release(self, message: Release) -> None:
        self._send("release", message.model_dump_json())

    def finish(self, message: Finish) -> Ticket | None:
        response = self._post("finish", message.model_dump_json())
        if response.status_code == NO_CONTENT:
            return None
        # The server does not know the address at which this machine has reached it.
        return _read(response, _TICKET).model_copy(update={"server_url": self._server_url})

    def grants(self, fence: int, kind: GrantKind, count: int, *, through_server: bool = False) -> list[Grant]:
        asked = {"fence": fence, "kind": kind, "count": count, "through_server": through_server}
        body = TypeAdapter(dict[str, Any]).dump_json(asked)
        return list(map(self._reached, self.request("grants", body.decode(), _GRANTS)))

    def request(self, path: str, body: str, expected: TypeAdapter[T]) -> T:
        """The reply to a call of the lease."""
        return _read(self._post(path, body), expected)

    def _send(self, path: str, body: str) -> None:
        if (status := self._post(path, body).status_code) != NO_CONTENT:
            raise ServerAway(f"{status}: the answer is not from the server")

    def _post(self, path: str, body: str) -> httpx.Response:
        try:
            response = self._client.post(
                f"{self._base}/{path}", content=body.encode(), headers={"Content-Type": "application/json"}
            )
        except httpx.HTTPError as error:
            raise ServerAway(f"{type(error).__name__}: {error}") from error
        if response.is_success:
            return response
        detail = detail_of(response)
        if response.status_code in _LATER or not is_ours(response):
            raise ServerAway(detail)
        raise (Stale if response.status_code in _OVER else Refused)(detail)


class StdoutUplink:
    """Implements `Uplink` for an offline session: one signed line of output per message.

    The reader of the output applies the lines in order. An offer is made only for a file that is in the store under its
    hash, so it counts as committed at once.
    """

    def __init__(self, ticket: Ticket, out: IO[str] | None = None) -> None:
        self._token, self._out, self._is_torn = ticket.token, out or sys.stdout, False

    def started(self, message: Started) -> None:
        self._send(message.as_line())

    def report(self, message: Report) -> Directive:
        self._send(message.as_line())
        return Directive(action=Action.CONTINUE)

    def offer(self, message: Offer) -> OfferReply:
        self._send(message.as_line())
        return OfferReply(committed=True)

    def release(self, message: Release) -> None:
        self._send(message.as_line())

    def finish(self, message: Finish) -> None:
        self._send(message.as_line())

    def grants(self, fence: int, kind: GrantKind, count: int, *, through_server: bool = False) -> list[Grant]:
        raise Refused(f"no {kind} grant is left, and the server cannot be reached for another")

    def _send(self, message: str) -> None:
        """Write the line in a single call, so that no other thread's output is mixed into it.

        A line that was cut by a full disk is ended, and then sent again. Readers skip lines that are not whole.
        """
        before, self._is_torn = "\n" if self._is_torn else "", True
        try:
            self._out.write(f"{before}{sign_line(self._token, message)}\n")
            self._out.flush()
        except OSError as error:
            raise ServerAway(f"the output cannot be written: {error.strerror or error}") from error
        self._is_torn = False


def _read(response: httpx.Response, expected: TypeAdapter[T]) -> T:
    try:
        return expected.validate_json(response.content)
    except ValidationError as error:
        raise ServerAway(f"{response.status_code}: the answer is not from the server") from error


def is_ours(response: httpx.Response) -> bool:
    """Whether the reply is in the server's own format for errors."""
    try:
        return str(response.json()["type"]).startswith(_OURS)
    except (ValueError, TypeError, KeyError):
        return False


def detail_of(response: httpx.Response) -> str:
    """Status and explanation of an error reply."""
    try:
        body = response.json()
        faults = "; ".join(f"{e.get('pointer')}: {e.get('detail')}" for e in body.get("errors") or ())
        return (
            f"{response.status_code}: {body.get('detail') or body.get('title')}{' (' + faults + ')' if faults else ''}"
        )
    except (ValueError, AttributeError):
        return f"{response.status_code}: {response.text[:200]}"
