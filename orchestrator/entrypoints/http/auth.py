"""Who is asking: people by their API token, in a header or in their browser's cookie, machines by their lease's token.

All are compared as hashes.
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

from orchestrator.adapters.database.queries import Views
from orchestrator.domain.errors import ForbiddenError
from orchestrator.domain.model import Role
from orchestrator.ports.providers import Context
from orchestrator.services.jobs import Actor

REMEMBERED_S = 1.0
"""How long a token is believed without asking the database; one revoked elsewhere lives on for no longer."""

REMEMBERED_MOST = 4096
_OF_A_LEASE = re.compile(r"/api/v1/leases/([^/]+)/")
_bearer = HTTPBearer(auto_error=False, description="An API token: `trainhop tokens add`, or the file `admin.token`.")
_lease_bearer = HTTPBearer(
    auto_error=False, scheme_name="LeaseToken", description="The token a machine was started with."
)


class Authenticator:
    """Token lookups with a short memory; safe to share between threads."""

    def __init__(self, ctx: Context, views: Views) -> None:
        self._ctx, self._views = ctx, views
        self._actors: dict[str, tuple[float, Actor]] = {}

    async def actor(self, token: str) -> Actor | None:
        """The member who holds this token, or None."""
        hashed = self._ctx.tokens.hash(token)
        until, actor = self._actors.get(hashed, (0.0, None))
        if actor is not None and time.monotonic() < until:
            return actor
        return await asyncio.to_thread(self._look_up, hashed)

    def _look_up(self, hashed: str) -> Actor | None:
        owner = self._views.token(hashed)
        if owner is None or (owner.expires_at is not None and owner.expires_at <= self._ctx.clock.now()):
            return None
        if len(self._actors) >= REMEMBERED_MOST:
            self._actors.clear()
        actor = Actor(member_id=owner.member_id, name=owner.name, role=owner.role)
        self._actors[hashed] = (time.monotonic() + REMEMBERED_S, actor)
        return actor

    def forget(self) -> None:
        """A token was revoked: believe nothing from memory."""
        self._actors.clear()

    def holds(self, token: str, lease_id: str) -> bool:
        """Whether this is the token of this very lease, live or ended."""
        return hmac.compare_digest(self._ctx.tokens.for_lease(lease_id).encode(), token.encode())


def bearer_token(request: Request) -> str | None:
    """The token of an `Authorization: Bearer` header."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def cookie_name(request: Request) -> str:
    """Browsers share cookies among all ports of a host: two servers on one computer must not log each other out."""
    return f"trainhop-{request.url.port or 'web'}"


def cookie_token(request: Request) -> str | None:
    """The token of a browser that was logged in.

    For everything but reading, the request must also name the page it comes from, which the gate has compared.
    """
    if request.method not in {"GET", "HEAD"} and "origin" not in request.headers:
        return None
    return request.cookies.get(cookie_name(request))


async def is_still_known(request: Request) -> bool:
    """Whether the token that opened a stream still counts."""
    token = bearer_token(request) or cookie_token(request)
    return token is not None and await request.app.state.server.auth.actor(token) is not None


def _unknown() -> HTTPException:
    return HTTPException(401, "a valid token is needed", {"WWW-Authenticate": "Bearer"})


async def actor(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Actor:
    """The caller; 401 without a token that counts."""
    token = credentials.credentials if credentials else cookie_token(request)
    found = await request.app.state.server.auth.actor(token) if token else None
    if found is None:
        raise _unknown()
    return found


async def is_known(request: Request) -> bool:
    """Whether the caller holds a token that counts, a person's or that of the lease in the path."""
    auth: Authenticator = request.app.state.server.auth
    token = bearer_token(request) or cookie_token(request)
    if not token:
        return False
    lease = _OF_A_LEASE.match(request.url.path)
    if lease is not None and auth.holds(token, lease[1]):
        return True
    try:
        return await auth.actor(token) is not None
    except SQLAlchemyError:
        return True  # that the database is away is for the endpoint to say


async def admin(me: Annotated[Actor, Depends(actor)]) -> Actor:
    """The caller, who must be an admin; 403 for others."""
    if me.role is not Role.ADMIN:
        raise ForbiddenError("only an admin may do this")
    return me


async def lease_holder(
    request: Request, lease_id: str, _: Annotated[HTTPAuthorizationCredentials | None, Depends(_lease_bearer)]
) -> str:
    """The lease in the path, if the caller holds its token; 401 otherwise."""
    token = bearer_token(request)
    if token is None or not request.app.state.server.auth.holds(token, lease_id):
        raise _unknown()
    return lease_id
