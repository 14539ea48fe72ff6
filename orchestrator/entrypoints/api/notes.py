"""The HTTP endpoint for the note of a job."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field

from orchestrator.entrypoints.api import requests, responses
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, JobId, ServerDep
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute
from orchestrator.services import notes

router = APIRouter(prefix=PREFIX, tags=["jobs"], route_class=ApiRoute, responses=PROBLEMS)


class NoteUpdate(requests.RequestModel):
    """The note of a job, as plain text. An empty one removes it."""

    note: Annotated[str, Field(max_length=notes.MAX_NOTE)]


class Note(responses.ResponseModel):
    """The note of a job. Empty without one."""

    note: str


@router.put("/jobs/{job_id}/note", operation_id="set_note", summary="Replace the note of a job")
def put(server: ServerDep, me: CurrentUser, job_id: JobId, asked: NoteUpdate) -> Note:
    """All who may see the job can read its note. Only its owner can change it."""
    return Note(note=notes.set_note(server.ctx, me, job_id, asked.note))
