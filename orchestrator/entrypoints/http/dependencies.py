"""What endpoints are given: the server's parts, the caller, and the caller's job."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Path, Query, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from orchestrator.adapters.database.dashboard_queries import PageViews
from orchestrator.adapters.database.queries import Views
from orchestrator.bootstrap import App
from orchestrator.domain.errors import InvalidError, NotFoundError
from orchestrator.domain.model import Role
from orchestrator.entrypoints.api import responses
from orchestrator.entrypoints.http.auth import Authenticator, actor, admin
from orchestrator.entrypoints.http.event_stream import EventNotifier
from orchestrator.entrypoints.http.logins import Logins
from orchestrator.entrypoints.http.metrics import Metrics
from orchestrator.entrypoints.http.rate_limit import RateLimit
from orchestrator.entrypoints.http.write_batcher import WriteBatcher
from orchestrator.ports.providers import Context
from orchestrator.services import accounts
from orchestrator.services.jobs import Actor

_ESCAPED = re.compile(rb"(?<!\\)(\\++)u0000")


@dataclass(frozen=True, kw_only=True)
class Server:
    """Everything an endpoint may need; one per FastAPI application, at `app.state.server`."""

    app: App
    ctx: Context
    views: Views
    pages: PageViews
    logins: Logins
    auth: Authenticator
    clerk: WriteBatcher
    guesses: RateLimit
    pulse: EventNotifier
    tally: Metrics


async def _server(request: Request) -> Server:
    return request.app.state.server


ServerDep = Annotated[Server, Depends(_server)]
CurrentUser = Annotated[Actor, Depends(actor)]
Admin = Annotated[Actor, Depends(admin)]
JobId = Annotated[str, Path(max_length=64, description="The job's id.")]
Sha256 = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]


def my_job(server: ServerDep, me: CurrentUser, job_id: JobId) -> str:
    """The id of a job that the caller may see; to others it does not exist."""
    owner = server.views.owner(job_id)
    if owner is None or not me.may_see(owner):
        raise NotFoundError(f"there is no job {job_id}")
    return job_id


MyJob = Annotated[str, Depends(my_job)]
MemberName = Annotated[str | None, Query(max_length=100, description="A member's name or id.")]


def whose(server: ServerDep, me: CurrentUser, member: MemberName = None) -> str | None:
    """Id of the member whose things are asked for, or None for everybody's; one that nobody has where the caller sees none."""
    if member is None:
        return None if me.role is Role.ADMIN else me.member_id
    asked = server.views.member_id(member)
    return asked if asked is not None and me.may_see(asked) else "nobody"


OwnerFilter = Annotated[str | None, Depends(whose)]


def revoke(server: Server, me: Actor, token_id: str) -> None:
    """Make a token useless at once, and what may have been made with it and not been used yet: links that log in."""
    gone = accounts.remove_token(server.ctx, me, token_id)
    server.auth.forget()
    server.logins.forget(gone.member_id)


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": responses.Problem, "description": words}
    for status, words in {
        401: "No valid token.",
        403: "Not for this role.",
        404: "There is no such thing, or not for you.",
        409: "Not in this state.",
        413: "Too large.",
        422: "The request is wrong; `errors` say where.",
        503: "Something this needs does not answer; try again.",
    }.items()
}


def holds_nul(body: bytes) -> bool:
    """Whether JSON holds a NUL character, also an escaped one; an even number of backslashes escapes nothing but itself."""
    if b"\0" in body:
        return True
    return b"\\u0000" in body and any(len(found[1]) % 2 for found in _ESCAPED.finditer(body))


class PlainTextRoute(APIRoute):
    """A route whose JSON body may not hold NUL characters, which not every database keeps."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        inner = super().get_route_handler()

        async def checked(request: Request) -> Response:
            if self.body_field is not None and holds_nul(await request.body()):
                raise InvalidError("the body holds a NUL character", [("", "NUL characters are not allowed")])
            return await inner(request)

        return checked
