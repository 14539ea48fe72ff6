"""The pages of models: the list, one model with its candidates and history, promotion and rollback."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse, Response

from orchestrator.domain.accounts import Role
from orchestrator.domain.choices import AGAINST
from orchestrator.entrypoints.api.models import ModelName, ModelOwner
from orchestrator.entrypoints.api.requests import JOB_ID, MODEL_NAME
from orchestrator.entrypoints.dashboard.render import Viewer, page
from orchestrator.entrypoints.http.dependencies import ServerDep
from orchestrator.services import models

router = APIRouter(include_in_schema=False)
Job = Annotated[str, Form(pattern=JOB_ID)]
After = Annotated[int | None, Form(ge=0, lt=2**31)]


@router.get("/models")
def listing(
    request: Request, server: ServerDep, me: Viewer, job: Annotated[str | None, Query(pattern=JOB_ID)] = None
) -> Response:
    """The models of the viewer, or of all for an admin. With a job, a form that adds its adapter to a model."""
    found = models.listed(server.ctx, None if me.role is Role.ADMIN else me.member_id)
    judged = models.verdict_of(server.ctx, me, job) if job else None
    return page(request, "models.html", me, models=found, job=job, judged=judged, against=AGAINST, pattern=MODEL_NAME)


@router.post("/models")
def submit(
    server: ServerDep,
    me: Viewer,
    name: Annotated[str, Form(pattern=MODEL_NAME)],
    job: Job,
    promote: Annotated[bool, Form()] = False,
    force: Annotated[bool, Form()] = False,
) -> Response:
    """Add a job's adapter to a model, and promote it if that is asked for."""
    model = models.add(server.ctx, me, name, job)
    if promote or force:
        models.promote(server.ctx, me, name, job, force=force)
    return _to(me, model.member_id, name)


@router.get("/models/{name}")
def one(request: Request, server: ServerDep, me: Viewer, name: ModelName, member_id: ModelOwner) -> Response:
    """A model with the verdict on each candidate as of now, and its history."""
    found = models.look(server.ctx, me, member_id, name)
    names = {entry.candidate.job_id: entry.name for entry in found.entries}
    return page(request, "model.html", me, found=found, names=names, against=AGAINST)


@router.post("/models/{name}/promote")
def promote(
    server: ServerDep,
    me: Viewer,
    name: ModelName,
    job: Job,
    force: Annotated[bool, Form()] = False,
    after: After = None,
) -> Response:
    """Promote a candidate."""
    move = models.promote(server.ctx, me, name, job, force=force, after=after)
    return _to(me, move.member_id, name)


@router.post("/models/{name}/rollback")
def rollback(server: ServerDep, me: Viewer, name: ModelName, member_id: ModelOwner, after: After = None) -> Response:
    """Promote the candidate that was promoted before."""
    models.rollback(server.ctx, me, member_id, name, after=after)
    return _to(me, member_id, name)


def _to(me: Viewer, member_id: str, name: str) -> Response:
    """Go to the page of a model."""
    whose = "" if member_id == me.member_id else "?" + urlencode({"member": member_id})
    return RedirectResponse(f"/models/{name}{whose}", 303)
