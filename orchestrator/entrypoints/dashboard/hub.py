"""The form for a member's Hugging Face token, on the accounts page."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form
from fastapi.responses import RedirectResponse, Response

from orchestrator.entrypoints.dashboard.render import Viewer
from orchestrator.entrypoints.http.dependencies import ServerDep
from orchestrator.services import hub_tokens

router = APIRouter(include_in_schema=False)


@router.post("/hub-token")
def keep(
    server: ServerDep, me: Viewer, token: Annotated[str, Form(min_length=1, max_length=hub_tokens.MAX_TOKEN)]
) -> Response:
    """Check the token and store it."""
    hub_tokens.set_token(server.ctx, me.member_id, token)
    return RedirectResponse("/accounts", 303)


@router.post("/hub-token/remove")
def remove(server: ServerDep, me: Viewer) -> Response:
    """Remove the token."""
    hub_tokens.forget_token(server.ctx, me.member_id)
    return RedirectResponse("/accounts", 303)
