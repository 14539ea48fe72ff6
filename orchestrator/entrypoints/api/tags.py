"""The HTTP endpoint for the tags of a job."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field

from orchestrator.entrypoints.api import requests, responses
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, JobId, ServerDep
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute
from orchestrator.services import tags

router = APIRouter(prefix=PREFIX, tags=["jobs"], route_class=ApiRoute, responses=PROBLEMS)
Tag = Annotated[str, Field(pattern=tags.TAG)]


class TagsUpdate(requests.RequestModel):
    """The tags of a job: letters, digits, `.`, `_` and `-`, at most 50 of them each."""

    tags: Annotated[list[Tag], Field(max_length=tags.MAX_TAGS)]


class Tags(responses.ResponseModel):
    """The tags of a job, sorted."""

    tags: list[str]


@router.put("/jobs/{job_id}/tags", operation_id="set_tags", summary="Replace the tags of a job")
def put(server: ServerDep, me: CurrentUser, job_id: JobId, asked: TagsUpdate) -> Tags:
    """`GET /jobs?tag=` lists the jobs with a tag."""
    return Tags(tags=tags.set_tags(server.ctx, me, job_id, asked.tags))
