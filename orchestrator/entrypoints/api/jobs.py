"""HTTP endpoints for jobs: submit, list, show, and the actions on a job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response
from pydantic import Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.domain.accounts import Role
from orchestrator.domain.errors import InvalidError
from orchestrator.domain.lifecycle import JobState
from orchestrator.entrypoints.api import requests, responses
from orchestrator.entrypoints.http.auth import bearer_token
from orchestrator.entrypoints.http.dependencies import (
    PROBLEMS,
    CurrentUser,
    JobId,
    JobsFilter,
    SeenJob,
    Server,
    ServerDep,
)
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute, aside, check_json
from orchestrator.services import clones, dispatch, jobs, plans
from orchestrator.services.tags import MAX_TAGS, TAG
from worker.shared.job_spec import JobSpec

router = APIRouter(prefix=PREFIX, tags=["jobs"], route_class=ApiRoute, responses=PROBLEMS)

MAX_KEY = 255
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=MAX_KEY,
        description="A repeated request with the same key is executed once and gets the same answer.",
    ),
]
TagQuery = Annotated[
    list[Annotated[str, Field(pattern=TAG)]] | None,
    Query(max_length=MAX_TAGS, description="A tag. It can be repeated."),
]
JOB_FILE: dict[str, Any] = {
    "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobSpec"}}}}
}


async def _job_file(body: Annotated[dict[str, Any], Body(description="The job file as JSON.")]) -> JobSpec:
    return JobSpec.model_validate(body)


JobFile = Annotated[JobSpec, Depends(_job_file)]


def _in_full(server: Server, job_id: str) -> dict[str, Any]:
    row = server.queries.job(job_id, server.ctx.clock.now())
    assert row is not None
    if row["state"] in (JobState.QUEUED, JobState.LEASED):
        row["waiting"] = dispatch.why_waiting(server.ctx, job_id)
    return row


def _briefly(server: Server, job_id: str) -> dict[str, Any]:
    row = server.queries.job(job_id, server.ctx.clock.now())
    assert row is not None
    return row


@router.post(
    "/jobs",
    status_code=201,
    operation_id="submit_job",
    summary="Submit a job",
    openapi_extra=JOB_FILE,
    response_model=responses.SubmittedJob,
)
async def submit(server: ServerDep, me: CurrentUser, spec: JobFile, key: Key = None, tag: TagQuery = None) -> Response:
    """Validate the job file, pin the versions of model and data, and queue the job with the tags of `tag`."""
    tags, write = sorted(set(tag or ())), server.write_batcher.write_from_thread
    submission = await run_in_threadpool(jobs.submit, server.ctx, me, spec, key=key, tags=tags, write=write)
    job = submission.job
    if submission.is_new:
        row = server.queries.fresh(job, me.name, tags, server.ctx.clock.now())
    else:
        row = await run_in_threadpool(_briefly, server, job.id)
    return _created(job.id, row, submission.notes)


class _Quick:
    """A fast path of `submit` without FastAPI, which costs as much as the work itself.

    Requests that are not valid and plain use the regular route, which explains errors.
    """

    def __init__(self, long_way: ASGIApp) -> None:
        self._long_way = long_way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        token, key = bearer_token(request), request.headers.get("idempotency-key")
        server: Server = request.app.state.server
        me = await server.auth.actor(token) if token else None
        plain = me and me.role is not Role.VIEWER and (key is None or 0 < len(key) <= MAX_KEY)
        plain = plain and not request.url.query
        spec = await aside(body, lambda: _plain(request, body)) if plain else None
        if me and spec:
            await (await submit(server, me, spec, key))(scope, receive, send)
        else:
            await self._long_way(scope, _once_more(body, receive), send)


def _plain(request: Request, body: bytes) -> JobSpec | None:
    if request.headers.get("content-type") != "application/json":
        return None
    try:
        return JobSpec.model_validate(check_json(body))
    except (InvalidError, ValidationError, ValueError, RecursionError):
        return None


def _once_more(body: bytes, receive: Receive) -> Receive:
    first = True

    async def receiving() -> Message:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return receiving


def quick_route() -> Route:
    """The fast route for bulk submissions. FastAPI still documents it."""
    long_way = next(route for route in router.routes if getattr(route, "endpoint", None) is submit)
    assert isinstance(long_way, Route)
    return Route(f"{PREFIX}/jobs", _Quick(long_way.app), methods=["POST"], include_in_schema=False)


@router.post("/jobs:plan", operation_id="plan_job", summary="Plan a job", openapi_extra=JOB_FILE)
def plan(server: ServerDep, me: CurrentUser, spec: JobFile) -> responses.Plan:
    """Where the job would run, in how many sessions and for how long. The job is not queued."""
    return responses.Plan.model_validate(plans.plan(server.ctx, me, spec))


@router.get("/jobs", operation_id="list_jobs", summary="List jobs, newest first")
def listing(
    server: ServerDep,
    member_id: JobsFilter,
    state: Annotated[
        responses.StateWord | Literal["leased"] | None, Query(description="`leased` is the old word for `starting`.")
    ] = None,
    name: Annotated[str | None, Query(max_length=200, description="Part of the job's name.")] = None,
    tag: Annotated[str | None, Query(pattern=TAG, description="Only jobs with this tag.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[
        str | None, Query(max_length=64, pattern=r"^job-[0-9a-z]+$", description="`next` of the previous page.")
    ] = None,
) -> responses.Page[responses.Job]:
    """A page can have fewer than `limit` jobs. There are more pages while `next` is set."""
    stored = JobState.of(state) if state is not None else None
    page = server.queries.jobs(
        now=server.ctx.clock.now(), limit=limit, before=cursor, member_id=member_id, state=stored, name=name, tag=tag
    )
    waiting = dispatch.why_each_waits(server.ctx, [row["id"] for row in page.items], server.machines.places())
    for row in page.items:
        row["waiting"] = waiting.get(row["id"])
    return responses.Page[responses.Job].model_validate(page)


@router.get("/jobs/{job_id}", operation_id="get_job", summary="Get a job")
def one(server: ServerDep, job_id: SeenJob) -> responses.JobInFull:
    """The job with its job file and, while it is queued, the reason why it waits."""
    return responses.JobInFull.model_validate(_in_full(server, job_id))


@router.delete("/jobs/{job_id}", status_code=204, operation_id="delete_job", summary="Delete an ended job")
def delete(server: ServerDep, me: CurrentUser, job_id: JobId) -> None:
    """Deletes its checkpoints, adapter, metrics, samples and logs. A clone keeps the checkpoint it started from."""
    jobs.delete(server.ctx, me, job_id)


@router.post("/jobs/{job_id}:pause", operation_id="pause_job", summary="Pause a job")
def pause(server: ServerDep, me: CurrentUser, job_id: JobId) -> responses.JobInFull:
    """A running job saves a checkpoint after the current step. A queued job leaves the queue."""
    return responses.JobInFull.model_validate(_briefly(server, jobs.pause(server.ctx, me, job_id).id))


@router.post("/jobs/{job_id}:resume", operation_id="resume_job", summary="Resume a paused job")
def resume(server: ServerDep, me: CurrentUser, job_id: JobId) -> responses.JobInFull:
    """The job is queued and resumes from its last checkpoint."""
    return responses.JobInFull.model_validate(_briefly(server, jobs.resume(server.ctx, me, job_id).id))


@router.post("/jobs/{job_id}:handover", operation_id="hand_over_job", summary="Move a running job to another machine")
def hand_over(server: ServerDep, me: CurrentUser, job_id: JobId) -> responses.JobInFull:
    """The session saves a checkpoint and ends. The job resumes on the next free machine."""
    return responses.JobInFull.model_validate(_briefly(server, jobs.hand_over(server.ctx, me, job_id).id))


@router.post("/jobs/{job_id}:cancel", operation_id="cancel_job", summary="Cancel a job")
def cancel(server: ServerDep, me: CurrentUser, job_id: JobId) -> responses.JobInFull:
    """The job ends. Its last checkpoint is kept."""
    return responses.JobInFull.model_validate(_briefly(server, jobs.cancel(server.ctx, me, job_id).id))


@router.post("/jobs/{job_id}:retry", operation_id="retry_job", summary="Retry a failed or cancelled job")
def retry(server: ServerDep, me: CurrentUser, job_id: JobId) -> responses.JobInFull:
    """The job is queued and resumes from its last checkpoint."""
    return responses.JobInFull.model_validate(_briefly(server, jobs.retry(server.ctx, me, job_id).id))


@router.post("/jobs/{job_id}:priority", operation_id="set_priority", summary="Set a job's priority")
def priority(server: ServerDep, me: CurrentUser, job_id: JobId, asked: requests.Priority) -> responses.JobInFull:
    """Higher runs first. Values above 0 need an admin."""
    job = jobs.set_priority(server.ctx, me, job_id, asked.priority)
    return responses.JobInFull.model_validate(_briefly(server, job.id))


@router.post(
    "/jobs/{job_id}:clone",
    status_code=201,
    operation_id="clone_job",
    summary="Clone a job",
    response_model=responses.SubmittedJob,
)
def clone(
    server: ServerDep,
    me: CurrentUser,
    job_id: JobId,
    changes: Annotated[dict[str, Any], Body(description="The keys of the job file to change.")],
    checkpoint: Annotated[
        str | None,
        Query(alias="from", pattern=r"^[0-9a-f]{64}$", description="The sha256 of the checkpoint to start from."),
    ] = None,
    key: Key = None,
) -> Response:
    """Submit a copy of the job with changed keys, from the start or from a checkpoint.

    `checkpoint` and `placement` are merged key by key. In them, null resets a key to its default. Other values are
    replaced. A clone from a checkpoint restores its full state. With an unchanged file it ends in the same bytes as the
    original job. It can change max_steps, learning_rate, loraplus_lr_ratio, loraplus_lr_embedding, lr_scheduler,
    lr_scheduler_kwargs, warmup_ratio, warmup_steps, weight_decay, max_grad_norm and early_stopping_patience, which
    apply to the remaining steps, and keys that no checkpoint depends on. Other changes are refused with a pointer and a
    reason.
    """
    job = clones.clone(server.ctx, me, job_id, changes, checkpoint=checkpoint, key=key)
    return created(server, job.id, jobs.notes_of(server.ctx, job.id))


def created(server: Server, job_id: str, notes: Sequence[str]) -> Response:
    """The answer to a request that has queued a job."""
    return _created(job_id, _briefly(server, job_id), notes)


def _created(job_id: str, row: dict[str, Any], notes: Sequence[str]) -> Response:
    # Written here: FastAPI would validate the model's own output a second time.
    answer = responses.SubmittedJob.model_validate(row | {"notes": notes}).model_dump_json()
    return Response(answer, 201, {"Location": f"{PREFIX}/jobs/{job_id}"}, media_type="application/json")
