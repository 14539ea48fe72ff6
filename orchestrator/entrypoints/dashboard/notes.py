"""The form on a job's page that changes its note."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form
from fastapi.responses import RedirectResponse, Response

from orchestrator.entrypoints.dashboard.curve import OwnedJob
from orchestrator.entrypoints.dashboard.render import Viewer
from orchestrator.entrypoints.http.dependencies import ServerDep
from orchestrator.services import notes

router = APIRouter(include_in_schema=False)


@router.post("/jobs/{job_id}/note")
def write(
    server: ServerDep,
    me: Viewer,
    job_id: OwnedJob,
    note: Annotated[str, Form(max_length=2 * notes.MAX_NOTE)] = "",
) -> Response:
    """Replace the note of the job. Browsers send two characters for the end of a line."""
    notes.set_note(server.ctx, me, job_id, note.replace("\r\n", "\n"))
    return RedirectResponse(f"/jobs/{job_id}", 303)
