"""The page of members and tokens. Admins see all of them, members only their own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import ValidationError

from orchestrator.domain.accounts import Actor, Role, Token
from orchestrator.domain.errors import InvalidError
from orchestrator.entrypoints.api.requests import MemberCreate, Name, TokenCreate
from orchestrator.entrypoints.dashboard.render import Viewer, page
from orchestrator.entrypoints.http.auth import bearer_token, cookie_token
from orchestrator.entrypoints.http.dependencies import Server, ServerDep, revoke
from orchestrator.entrypoints.http.logins import BROWSER
from orchestrator.services import access, members, team
from worker.shared.plain_errors import in_words

router = APIRouter(include_in_schema=False)


@router.get("/people")
def people(request: Request, server: ServerDep, me: Viewer) -> Response:
    """The page of members and tokens."""
    return _page(request, server, me)


def _page(request: Request, server: Server, me: Actor, **more: Any) -> Response:
    tokens = members.list_tokens(server.ctx, me)
    everybody = members.list_members(server.ctx)
    shown = everybody if me.role is Role.ADMIN else [m for m in everybody if m.id == me.member_id]
    secret = bearer_token(request) or cookie_token(request)
    with server.ctx.uow() as tx:
        mine = tx.tokens.get_by_hash(server.ctx.tokens.hash(secret)) if secret else None
    values = {"current": mine.id if mine else "", "secret": None, "link": None, "who": "", "roles": list(Role)} | more
    values["team"] = team.settings(server.ctx)
    return page(request, "people.html", me, tokens=_grouped(tokens[::-1]), members=shown, **values)


def _grouped(tokens: Sequence[Token]) -> list[list[Token]]:
    """The rows of the table of tokens. Log-ins of one member with browsers of one kind are one row."""
    rows: dict[tuple[str, str], list[Token]] = {}
    for token in tokens:
        kind = token.name if token.name.startswith(BROWSER) else token.id
        rows.setdefault((token.member_id, kind), []).append(token)
    return list(rows.values())


@router.post("/people/team")
def change_team(server: ServerDep, me: Viewer, everyone_sees_jobs: Annotated[bool, Form()] = False) -> Response:
    """Change what members see of each other."""
    team.change(server.ctx, me, everyone_sees_jobs=everyone_sees_jobs)
    server.auth.forget()
    return RedirectResponse("/people", 303)


@router.get("/tokens")
def tokens() -> Response:
    """The same page, for a browser that reloads the form's address."""
    return RedirectResponse("/people", 303)


@router.post("/people")
def add_member(
    server: ServerDep, me: Viewer, name: Annotated[Name, Form()], role: Annotated[Role, Form()] = Role.MEMBER
) -> Response:
    """Add a member."""
    asked = MemberCreate(name=name, role=role)
    members.add_member(server.ctx, me, asked.name, asked.role)
    return RedirectResponse("/people", 303)


@router.post("/people/{member_id}/link")
def add_link(request: Request, server: ServerDep, me: Viewer, member_id: str) -> Response:
    """Create a login link for this member."""
    access.require_admin(me)
    with server.ctx.uow() as tx:
        member = access.find_member(tx, member_id)
    link = server.logins.link(Actor(member_id=member.id, name=member.name, role=member.role))
    url = (server.app.settings.public_url or server.ctx.server_url()).rstrip("/")
    return _page(request, server, me, link=url + link, who=member.name)


@router.post("/people/{member_id}/remove")
def remove_member(server: ServerDep, me: Viewer, member_id: str) -> Response:
    """Remove a member."""
    members.remove_member(server.ctx, me, member_id)
    server.auth.forget()
    return RedirectResponse("/people", 303)


@router.post("/tokens")
def add_token(
    request: Request,
    server: ServerDep,
    me: Viewer,
    name: Annotated[Name, Form()],
    member: Annotated[str, Form(max_length=100)] = "",
    days: Annotated[str, Form(max_length=12)] = "",
) -> Response:
    """Create a token. Its secret is shown only on this page."""
    try:
        asked = TokenCreate.model_validate({"member": member or me.member_id, "name": name, "days": days or None})
    except ValidationError as error:
        faults = [(str(f["loc"][0]), in_words(f)) for f in error.errors()]
        raise InvalidError("; ".join(f"{where}: {what}" for where, what in faults), faults) from error
    token, secret = members.add_token(
        server.ctx, me, member=asked.member or me.member_id, name=asked.name, days=asked.days
    )
    return _page(request, server, me, secret=secret, who=token.name)


@router.post("/tokens/revoke")
def remove_tokens(server: ServerDep, me: Viewer, token: Annotated[list[str], Form(max_length=1_000)]) -> Response:
    """Revoke several tokens: the log-ins of one row."""
    for token_id in token:
        revoke(server, me, token_id)
    return RedirectResponse("/people", 303)


@router.post("/tokens/{token_id}/revoke")
def remove_token(server: ServerDep, me: Viewer, token_id: str) -> Response:
    """Revoke a token."""
    revoke(server, me, token_id)
    return RedirectResponse("/people", 303)
