"""Authentication: members by API token in a header or cookie, workers by lease token.

Tokens are compared as hashes.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from orchestrator.adapters.database.queries import Queries
from orchestrator.domain.accounts import Account, Actor, Role
from orchestrator.domain.errors import ForbiddenError
from orchestrator.entrypoints.http.routes import PREFIX
from orchestrator.services import joined_machines
from orchestrator.services.context import Context

REMEMBERED_MOST = 4096
_OF_A_LEASE = re.compile(rf"{PREFIX}/leases/([^/]+)/")
_OF_A_MACHINE = re.compile(rf"{PREFIX}/machines/([^/]+)/")
_OF_EVERYONE = re.compile(rf"({PREFIX})?/tokens(/|$)|{PREFIX}/login-links$")
_bearer = HTTPBearer(
    auto_error=False, description="An API token of `trainhop tokens add --help`, or the file `admin.token`."
)
_lease_bearer = HTTPBearer(auto_error=False, scheme_name="LeaseToken", description="The lease token of a worker.")


_machine_bearer = HTTPBearer(
    auto_error=False, scheme_name="MachineToken", description="The token of a machine that has joined."
)


class Authenticator:
    """Token lookups with a short cache. Safe to share between threads.

    A token is cached for `remembered_s` seconds. A token that another process revokes stays valid for that time.
    """

    def __init__(self, ctx: Context, queries: Queries, *, remembered_s: float = 1.0) -> None:
        self._ctx, self._queries, self._remembered_s = ctx, queries, remembered_s
        self._actors: dict[str, tuple[float, Actor]] = {}

    async def actor(self, token: str) -> Actor | None:
        """The member who holds this token, or None."""
        hashed = self._ctx.tokens.hash(token)
        until, actor = self._actors.get(hashed, (0.0, None))
        if actor is not None and time.monotonic() < until:
            return actor
        return await asyncio.to_thread(self._look_up, hashed)

    def _look_up(self, hashed: str) -> Actor | None:
        found = self._queries.token(hashed)
        if found is None or (found[1] is not None and found[1] <= self._ctx.clock.now()):
            return None
        if len(self._actors) >= REMEMBERED_MOST:
            self._actors.clear()
        self._actors[hashed] = (time.monotonic() + self._remembered_s, found[0])
        return found[0]

    def machine(self, token: str, account_id: str) -> Account | None:
        """The account of the joined machine with this token, unless it has left."""
        return joined_machines.holds(self._ctx, account_id, token)

    def forget(self) -> None:
        """Clear the cache after a token was revoked, or after the team's settings were changed."""
        self._actors.clear()

    def holds(self, token: str, lease_id: str) -> bool:
        """Whether this is the token of this lease, live or ended."""
        return hmac.compare_digest(self._ctx.tokens.for_lease(lease_id).encode(), token.encode())


def bearer_token(request: Request) -> str | None:
    """The token of an `Authorization: Bearer` header."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def cookie_name(request: Request) -> str:
    """The cookie's name. Browsers share cookies between ports, so two servers on one host need different names."""
    return f"trainhop-{request.url.port or 'web'}"


def cookie_token(request: Request) -> str | None:
    """The token in the browser's cookie.

    A request that is not a read must also have an Origin header, which the middleware has checked.
    """
    if request.method not in {"GET", "HEAD"} and "origin" not in request.headers:
        return None
    return request.cookies.get(cookie_name(request))


async def is_unchanged(request: Request, me: Actor) -> bool:
    """Whether the token that opened a stream is still valid and allows what it did then."""
    token = bearer_token(request) or cookie_token(request)
    return token is not None and await request.app.state.server.auth.actor(token) == me


def refuse_viewer(request: Request, me: Actor) -> None:
    """Raise `ForbiddenError` if a viewer asks for a change. Its own tokens and log-in links are allowed."""
    is_read = request.method in {"GET", "HEAD"}
    if me.role is Role.VIEWER and not is_read and not _OF_EVERYONE.match(request.url.path):
        raise ForbiddenError("Your role is viewer, which changes nothing. Ask an admin to add you as a member.")


def _unknown() -> HTTPException:
    return HTTPException(401, "The token is missing or not valid.", {"WWW-Authenticate": "Bearer"})


async def actor(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Actor:
    """The calling member. Raises 401 without a valid token."""
    token = credentials.credentials if credentials else cookie_token(request)
    found = await request.app.state.server.auth.actor(token) if token else None
    if found is None:
        raise _unknown()
    refuse_viewer(request, found)
    return found


async def is_known(request: Request) -> bool:
    """Whether the request has a valid token: an API token, or that of the lease in the path."""
    auth: Authenticator = request.app.state.server.auth
    token = bearer_token(request) or cookie_token(request)
    if not token:
        return False
    lease = _OF_A_LEASE.match(request.url.path)
    if lease is not None and auth.holds(token, lease[1]):
        return True
    machine = _OF_A_MACHINE.match(request.url.path)
    try:
        if machine is not None:
            return await asyncio.to_thread(auth.machine, token, machine[1]) is not None
        return await auth.actor(token) is not None
    except SQLAlchemyError:
        return True  # the endpoint reports that the database does not answer


async def admin(me: Annotated[Actor, Depends(actor)]) -> Actor:
    """The calling admin. Raises 403 for other members."""
    if me.role is not Role.ADMIN:
        raise ForbiddenError("Only an admin can do this. Ask an admin.")
    return me


async def lease_holder(
    request: Request, lease_id: str, _: Annotated[HTTPAuthorizationCredentials | None, Depends(_lease_bearer)]
) -> str:
    """The lease in the path. Raises 401 without its token."""
    token = bearer_token(request)
    if token is None or not request.app.state.server.auth.holds(token, lease_id):
        raise _unknown()
    return lease_id


async def machine_holder(
    request: Request, account: str, _: Annotated[HTTPAuthorizationCredentials | None, Depends(_machine_bearer)]
) -> Account:
    """The joined machine in the path. Raises 401 without its token."""
    token, auth = bearer_token(request), request.app.state.server.auth
    found = await asyncio.to_thread(auth.machine, token, account) if token else None
    if found is None:
        raise _unknown()
    return found
