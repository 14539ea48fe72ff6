"""The form that pushes a job's adapter to the Hugging Face hub. The job's page shows what becomes of it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form
from fastapi.responses import RedirectResponse, Response

from orchestrator.entrypoints.api.requests import PushCreate
from orchestrator.entrypoints.dashboard.curve import OwnedJob
from orchestrator.entrypoints.dashboard.render import Viewer
from orchestrator.entrypoints.http.dependencies import ServerDep
from orchestrator.services import pushes
from orchestrator.services.pushes import Wish

router = APIRouter(include_in_schema=False)


@router.post("/jobs/{job_id}/push")
def start(server: ServerDep, me: Viewer, job_id: OwnedJob, asked: Annotated[PushCreate, Form()]) -> Response:
    """Start a push, and go back to the job's page."""
    wish = Wish(repo=asked.repo, is_public=asked.public, replace=asked.replace)
    pushes.start(server.ctx, me, job_id, wish)
    return RedirectResponse(f"/jobs/{job_id}#push", 303)
