"""How a worker talks to the server: over HTTP, or by lines on its output where it cannot call and nobody answers.

UplinkError
├── ServerAway    no answer, or one that means 'later': keep working, try again
├── Stale         the lease is over: stop at once
└── Refused       the server understood and said no; the message is its own
"""

from __future__ import annotations

import sys
from http.client import NO_CONTENT
from typing import IO, Any, Protocol, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from worker.shared.messages import (
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
_GRANTS: TypeAdapter[list[Grant]] = TypeAdapter(list[Grant])
_OURS = "urn:trainhop:problem:"
"""What the `type` of every refusal of the server begins with."""
T = TypeVar("T")
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
_OVER = frozenset({401, 403, 404, 409, 410})


class UplinkError(Exception):
    """The server did not do what was asked."""


class ServerAway(UplinkError):
    """No usable answer; nothing is known about what the server did."""


class Stale(UplinkError):
    """This lease counts no more."""


class Refused(UplinkError):
    """The request was wrong."""


class Uplink(Protocol):
    """The server as a worker sees it; every call may raise any `UplinkError`."""

    def started(self, said: Started) -> None: ...
    def report(self, said: Report) -> Directive: ...
    def offer(self, said: Offer) -> OfferReply: ...
    def release(self, said: Release) -> None: ...
    def finish(self, said: Finish) -> None: ...
    def grants(self, fence: int, kind: GrantKind, count: int) -> list[Grant]: ...


class HttpUplink:
    """Implements `Uplink` over the worker API of a server that can be reached.

    Only the server's own words count: a proxy, a tunnel or a stranger who has taken its port while it is away may answer
    anything, and none of it ends a session.
    """

    def __init__(self, ticket: Ticket) -> None:
        self._base = f"{ticket.server_url}/api/v1/leases/{ticket.lease}"
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {ticket.token}"}, timeout=TIMEOUT_S, trust_env=False
        )

    def start(self, request: StartRequest) -> Assignment:
        """Ask for the job."""
        return self._ask("start", request.model_dump_json(), _ASSIGNMENT)

    def started(self, said: Started) -> None:
        self.start(said.request)

    def report(self, said: Report) -> Directive:
        return self._ask("report", said.model_dump_json(exclude_defaults=True), _DIRECTIVE)

    def offer(self, said: Offer) -> OfferReply:
        return self._ask("offer", said.model_dump_json(), _REPLY)

    def release(self, said: Release) -> None:
        self._say("release", said.model_dump_json())

    def finish(self, said: Finish) -> None:
        self._say("finish", said.model_dump_json())

    def grants(self, fence: int, kind: GrantKind, count: int) -> list[Grant]:
        body = TypeAdapter(dict[str, Any]).dump_json({"fence": fence, "kind": kind, "count": count})
        return self._ask("grants", body.decode(), _GRANTS)

    def _ask(self, path: str, body: str, expected: TypeAdapter[T]) -> T:
        answer = self._post(path, body)
        try:
            return expected.validate_json(answer.content)
        except ValidationError as error:
            raise ServerAway(f"{answer.status_code}: not an answer of the server") from error

    def _say(self, path: str, body: str) -> None:
        if (status := self._post(path, body).status_code) != NO_CONTENT:
            raise ServerAway(f"{status}: not an answer of the server")

    def _post(self, path: str, body: str) -> httpx.Response:
        try:
            answer = self._client.post(
                f"{self._base}/{path}", content=body.encode(), headers={"Content-Type": "application/json"}
            )
        except httpx.HTTPError as error:
            raise ServerAway(f"{type(error).__name__}: {error}") from error
        if answer.is_success:
            return answer
        detail = _detail(answer)
        if answer.status_code in _LATER or not _is_ours(answer):
            raise ServerAway(detail)
        raise (Stale if answer.status_code in _OVER else Refused)(detail)


class StdoutUplink:
    """Implements `Uplink` for a machine that can be listened to but cannot call: one signed line per message.

    Whoever follows the output applies the lines in their order. An offer is made only of a file that lies in the store
    under its announced hash, so it counts as committed as soon as it is said.
    """

    def __init__(self, ticket: Ticket, out: IO[str] | None = None) -> None:
        self._token, self._out = ticket.token, out or sys.stdout

    def started(self, said: Started) -> None:
        self._say(said.as_line())

    def report(self, said: Report) -> Directive:
        self._say(said.as_line())
        return Directive(action=Action.CONTINUE)

    def offer(self, said: Offer) -> OfferReply:
        self._say(said.as_line())
        return OfferReply(committed=True)

    def release(self, said: Release) -> None:
        self._say(said.as_line())

    def finish(self, said: Finish) -> None:
        self._say(said.as_line())

    def grants(self, fence: int, kind: GrantKind, count: int) -> list[Grant]:
        raise Refused(f"no {kind} grant is left, and nobody can be asked for another")

    def _say(self, message: str) -> None:
        """One write, so that nothing of another thread's gets into the line."""
        self._out.write(sign_line(self._token, message) + "\n")
        self._out.flush()


def _is_ours(answer: httpx.Response) -> bool:
    try:
        return str(answer.json()["type"]).startswith(_OURS)
    except (ValueError, TypeError, KeyError):
        return False


def _detail(answer: httpx.Response) -> str:
    try:
        said = answer.json()
        faults = "; ".join(f"{e.get('pointer')}: {e.get('detail')}" for e in said.get("errors") or ())
        return f"{answer.status_code}: {said.get('detail') or said.get('title')}{' (' + faults + ')' if faults else ''}"
    except (ValueError, AttributeError):
        return f"{answer.status_code}: {answer.text[:200]}"
