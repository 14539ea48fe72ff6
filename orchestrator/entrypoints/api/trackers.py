"""HTTP endpoints for experiment trackers: your logins, and the runs of a job. Keys are never returned."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import FileResponse
from pydantic import Field, SecretStr

from orchestrator.domain.errors import NotFoundError
from orchestrator.domain.tracking import TrackedRun
from orchestrator.entrypoints.api import requests, responses
from orchestrator.entrypoints.api.responses import Items, Time
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, OwnJob, ServerDep
from orchestrator.entrypoints.http.files import BINARY, OCTETS
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute
from orchestrator.services import tracker_logins

router = APIRouter(prefix=PREFIX, tags=["trackers"], route_class=ApiRoute, responses=PROBLEMS)
Name = Annotated[str, Path(max_length=32, description="wandb, trackio or mlflow.")]


class TrackerLoginUpdate(requests.RequestModel):
    """A login. What each tracker needs is in the docs. `project` is `trainhop` if it is left out."""

    url: Annotated[str, Field(max_length=tracker_logins.MAX_URL)] = ""
    key: Annotated[SecretStr, Field(max_length=tracker_logins.MAX_KEY)] = SecretStr("")
    project: Annotated[str, Field(max_length=tracker_logins.MAX_PROJECT)] = ""


class Tracker(responses.ResponseModel):
    """A tracker, with your login if one is stored. `problem` says why `report_to` cannot name it now."""

    tracker: str
    stored: bool
    url: str
    project: str
    problem: str


class JobRun(responses.ResponseModel):
    """The run of a job at a tracker. Its id there is the job's id.

    All steps up to `written_step` are there (null: none yet). `told` is the job's final state when the tracker knows
    it. `reason` says why the last attempt failed. The next one is at `not_before`, unless the server gave up.
    """

    tracker: str
    written_step: int | None
    told: str
    reason: str
    not_before: Time | None
    gave_up_at: Time | None
    url: str


@router.get("/trackers", operation_id="list_trackers", summary="List experiment trackers")
def listing(server: ServerDep, me: CurrentUser) -> Items[Tracker]:
    """Those that `report_to` can name."""
    found = [Tracker.model_validate(vars(each)) for each in tracker_logins.states(server.ctx, me.member_id)]
    return Items[Tracker](items=found)


@router.put("/trackers/{tracker}", operation_id="set_tracker", summary="Store a login for a tracker")
def put(server: ServerDep, me: CurrentUser, tracker: Name, asked: TrackerLoginUpdate) -> Tracker:
    """It is stored encrypted and used only by the server. Runs that wait for a login are tried at once."""
    kept = tracker_logins.set_login(
        server.ctx, me, tracker, key=asked.key.get_secret_value(), url=asked.url, project=asked.project
    )
    return Tracker.model_validate(vars(kept))


@router.delete(
    "/trackers/{tracker}", status_code=204, operation_id="remove_tracker", summary="Remove your login for a tracker"
)
def remove(server: ServerDep, me: CurrentUser, tracker: Name) -> None:
    """Jobs continue, and what was written stays at the tracker."""
    tracker_logins.forget_login(server.ctx, me.member_id, tracker)


@router.get("/jobs/{job_id}/trackers", operation_id="list_job_trackers", summary="List a job's runs at trackers")
def runs(server: ServerDep, job_id: OwnJob) -> Items[JobRun]:
    """How far each was written, and why it waits."""
    with server.ctx.uow() as tx:
        found = tx.tracking.of_job(job_id)
    return Items[JobRun](items=[_run(each) for each in found])


def _run(run: TrackedRun) -> JobRun:
    written = run.written_step if run.written_step >= 0 else None
    return JobRun.model_validate(vars(run) | {"written_step": written, "not_before": run.not_before or None})


@router.get(
    "/jobs/{job_id}/tensorboard",
    operation_id="get_tensorboard",
    summary="Download a job's event file",
    response_class=FileResponse,
    responses={200: BINARY[200]},
)
def tensorboard(server: ServerDep, job_id: OwnJob) -> FileResponse:
    """All steps of checkpoints so far, for TensorBoard."""
    path = server.ctx.trackers.file_of(job_id) if server.ctx.trackers is not None else None
    if path is None:
        raise NotFoundError(f"Job {job_id} has no event file. It has one with report_to: tensorboard.")
    return FileResponse(path, media_type=OCTETS, filename=path.name)
