"""The forms for a member's logins at experiment trackers, on the accounts page."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Path
from fastapi.responses import RedirectResponse, Response

from orchestrator.entrypoints.dashboard.render import Viewer
from orchestrator.entrypoints.http.dependencies import ServerDep
from orchestrator.services import tracker_logins
from orchestrator.services.tracker_logins import MAX_KEY, MAX_PROJECT, MAX_URL

router = APIRouter(include_in_schema=False)
Name = Annotated[str, Form(max_length=32)]


@router.post("/trackers")
def keep(
    server: ServerDep,
    me: Viewer,
    tracker: Name,
    url: Annotated[str, Form(max_length=MAX_URL)] = "",
    key: Annotated[str, Form(max_length=MAX_KEY)] = "",
    project: Annotated[str, Form(max_length=MAX_PROJECT)] = "",
) -> Response:
    """Store a login."""
    tracker_logins.set_login(server.ctx, me, tracker, key=key, url=url, project=project)
    return RedirectResponse("/accounts", 303)


@router.post("/trackers/{tracker}/remove")
def remove(server: ServerDep, me: Viewer, tracker: Annotated[str, Path(max_length=32)]) -> Response:
    """Remove a login."""
    tracker_logins.forget_login(server.ctx, me.member_id, tracker)
    return RedirectResponse("/accounts", 303)
