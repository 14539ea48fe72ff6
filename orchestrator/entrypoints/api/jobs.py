"""Jobs over HTTP: submit, look, and everything a person may do to one."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.domain.lifecycle import JobState
from orchestrator.entrypoints.api import requests, responses
from orchestrator.entrypoints.http.auth import bearer_token
from orchestrator.entrypoints.http.dependencies import (
    PROBLEMS,
    CurrentUser,
    JobId,
    MyJob,
    OwnerFilter,
    PlainTextRoute,
    Server,
    ServerDep,
    holds_nul,
)
from orchestrator.services import clones, dispatch, job_deletion, jobs, plans
from worker.shared.messages import JobSpec

router = APIRouter(tags=["jobs"], route_class=PlainTextRoute, responses=PROBLEMS)

MAX_KEY = 255
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=MAX_KEY,
        description="The same request with the same key is carried out once; the answer is repeated.",
    ),
]
JOB_FILE: dict[str, Any] = {
    "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobSpec"}}}}
}


async def _job_file(body: Annotated[dict[str, Any], Body(description="The job file as JSON.")]) -> JobSpec:
    return JobSpec.model_validate(body)


JobFile = Annotated[JobSpec, Depends(_job_file)]


def _in_full(server: Server, job_id: str) -> dict[str, Any]:
    row = server.views.job(job_id, server.ctx.clock.now())
    assert row is not None
    if row["state"] in (JobState.QUEUED, JobState.LEASED):
        with server.ctx.uow() as tx:
            job = tx.job(job_id)
        row["waiting"] = dispatch.why_waiting(server.ctx, job) if job else None
    return row


def _briefly(server: Server, job_id: str) -> dict[str, Any]:
    row = server.views.job(job_id, server.ctx.clock.now())
    assert row is not None
    return row


@router.post(
    "/jobs",
    status_code=201,
    operation_id="submit_job",
    summary="Queue a job",
    openapi_extra=JOB_FILE,
    response_model=responses.JobInFull,
)
async def submit(server: ServerDep, me: CurrentUser, spec: JobFile, key: Key = None) -> Response:
    """Check the job file, pin what it names, and queue it."""
    ready = await run_in_threadpool(jobs.prepare, server.ctx, me, spec, key=key)
    if isinstance(ready, jobs.Job):
        job, row = ready, await run_in_threadpool(_briefly, server, ready.id)
    else:
        job = await server.clerk.write((me.member_id, 0), lambda tx: jobs.queue(server.ctx, tx, me, ready))
        server.ctx.wake()
        row = server.views.fresh(job, me.name, server.ctx.clock.now())
    # Written here: FastAPI would check an answer again that its own model has just made.
    answer = responses.JobInFull.model_validate(row).model_dump_json()
    return Response(answer, 201, {"Location": f"/api/v1/jobs/{job.id}"}, media_type="application/json")


class _Quick:
    """`submit` for a request with nothing wrong, past FastAPI: its help costs as much as the work.

    Whatever is not plain goes the long way and is explained there.
    """

    def __init__(self, long_way: ASGIApp) -> None:
        self._long_way = long_way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        token, key = bearer_token(request), request.headers.get("idempotency-key")
        server: Server = request.app.state.server
        me = await server.auth.actor(token) if token else None
        spec = _plain(request, body) if me and (key is None or 0 < len(key) <= MAX_KEY) else None
        if me and spec:
            await (await submit(server, me, spec, key))(scope, receive, send)
        else:
            await self._long_way(scope, _once_more(body, receive), send)


def _plain(request: Request, body: bytes) -> JobSpec | None:
    if request.headers.get("content-type") != "application/json" or holds_nul(body):
        return None
    try:
        return JobSpec.model_validate(json.loads(body))
    except (ValidationError, ValueError, RecursionError):
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


def quick_route(prefix: str) -> Route:
    """The way in for jobs that come by the thousand; FastAPI still documents it."""
    long_way = next(route for route in router.routes if getattr(route, "endpoint", None) is submit)
    assert isinstance(long_way, Route)
    return Route(f"{prefix}/jobs", _Quick(long_way.app), methods=["POST"], include_in_schema=False)


@router.post("/jobs:plan", operation_id="plan_job", summary="What a job would do", openapi_extra=JOB_FILE)
def plan(server: ServerDep, me: CurrentUser, spec: JobFile) -> responses.Plan:
    """Where the job would run, in how many sessions and how long, without queueing it."""
    return responses.Plan.model_validate(plans.plan(server.ctx, me, spec))


@router.get("/jobs", operation_id="list_jobs", summary="List jobs, newest first")
def listing(
    server: ServerDep,
    member_id: OwnerFilter,
    state: JobState | None = None,
    name: Annotated[str | None, Query(max_length=200, description="Part of the job's name.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[
        str | None, Query(max_length=64, pattern=r"^job-[0-9a-z]+$", description="`next` of the page before.")
    ] = None,
) -> responses.Page[responses.Job]:
    """A page may hold fewer than `limit` jobs; there is more as long as `next` is set."""
    page = server.views.jobs(
        now=server.ctx.clock.now(), limit=limit, before=cursor, member_id=member_id, state=state, name=name
    )
    return responses.Page[responses.Job].model_validate(page)


@router.get("/jobs/{job_id}", operation_id="get_job", summary="One job")
def one(server: ServerDep, job_id: MyJob) -> responses.JobInFull:
    """The job with its file and, while it is queued, what it waits for."""
    return responses.JobInFull.model_validate(_in_full(server, job_id))


@router.delete("/jobs/{job_id}", status_code=204, operation_id="delete_job", summary="Delete a job that has ended")
def delete(server: ServerDep, me: CurrentUser, job_id: JobId) -> None:
    """For good, with its checkpoints, adapter, curves, samples and logs. A clone keeps the checkpoint it began with."""
    job_deletion.delete(server.ctx, me, job_id)


@router.post("/jobs/{job_id}:pause", operation_id="pause_job", summary="Pause a job")
def pause(server: ServerDep, me: CurrentUser, job_id: JobId) -> responses.JobInFull:
    """Everything is saved at the next step's end; a queued job just leaves the queue."""
    return responses.JobInFull.model_validate(_briefly(server, jobs.pause(server.ctx, me, job_id).id))


@router.post("/jobs/{job_id}:resume", operation_id="resume_job", summary="Go on with a paused job")
def resume(server: ServerDep, me: CurrentUser, job_id: JobId) -> responses.JobInFull:
    """The job is queued again and goes on where it was."""
    return responses.JobInFull.model_validate(_briefly(server, jobs.resume(server.ctx, me, job_id).id))


@router.post("/jobs/{job_id}:handover", operation_id="hand_over_job", summary="Move a running job on")
def hand_over(server: ServerDep, me: CurrentUser, job_id: JobId) -> responses.JobInFull:
    """The running session saves and leaves; the job goes on at the next free machine."""
    return responses.JobInFull.model_validate(_briefly(server, jobs.hand_over(server.ctx, me, job_id).id))


@router.post("/jobs/{job_id}:cancel", operation_id="cancel_job", summary="Cancel a job")
def cancel(server: ServerDep, me: CurrentUser, job_id: JobId) -> responses.JobInFull:
    """The job ends; its last checkpoint stays."""
    return responses.JobInFull.model_validate(_briefly(server, jobs.cancel(server.ctx, me, job_id).id))


@router.post("/jobs/{job_id}:retry", operation_id="retry_job", summary="Retry a failed or cancelled job")
def retry(server: ServerDep, me: CurrentUser, job_id: JobId) -> responses.JobInFull:
    """The job is queued again and goes on from its last checkpoint."""
    return responses.JobInFull.model_validate(_briefly(server, jobs.retry(server.ctx, me, job_id).id))


@router.post("/jobs/{job_id}:priority", operation_id="set_priority", summary="Move a job in the queue")
def priority(server: ServerDep, me: CurrentUser, job_id: JobId, asked: requests.Priority) -> responses.JobInFull:
    """Higher goes first; only an admin may go above 0."""
    job = jobs.set_priority(server.ctx, me, job_id, asked.priority)
    return responses.JobInFull.model_validate(_briefly(server, job.id))


@router.post("/jobs/{job_id}:clone", status_code=201, operation_id="clone_job", summary="Submit a job anew, changed")
def clone(
    server: ServerDep,
    me: CurrentUser,
    job_id: JobId,
    changes: Annotated[dict[str, Any], Body(description="The keys of the job file that differ.")],
    response: Response,
    checkpoint: Annotated[
        str | None,
        Query(
            alias="from", pattern=r"^[0-9a-f]{64}$", description="The sha256 of a checkpoint of the job to begin with."
        ),
    ] = None,
    key: Key = None,
) -> responses.JobInFull:
    """The same job with some keys of its file changed: from the start, or from a checkpoint.

    `checkpoint` and `placement` change key by key; null puts a key in them back to its default. Other values are replaced.
    A clone from a checkpoint begins with everything it holds, and with an unchanged file ends in the bytes of the original.
    It may change max_steps, learning_rate, lr_scheduler, warmup_ratio, weight_decay and max_grad_norm, which act on the
    steps to come, and all that no checkpoint depends on; other changes are refused, each with a pointer and the reason.
    """
    job = clones.clone(server.ctx, me, job_id, changes, checkpoint=checkpoint, key=key)
    response.headers["Location"] = f"/api/v1/jobs/{job.id}"
    return responses.JobInFull.model_validate(_briefly(server, job.id))
