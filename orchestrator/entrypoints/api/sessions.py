"""HTTP endpoints for a job's records: sessions, checkpoints, adapter, metrics, samples, events."""

# ruff: noqa: FAST003  a dependency reads the path and hides other members' jobs
from __future__ import annotations

import codecs
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from orchestrator.adapters.database.queries import Row
from orchestrator.domain.accounts import Account
from orchestrator.domain.errors import NotFoundError
from orchestrator.domain.jobs import session_of
from orchestrator.entrypoints.api import responses
from orchestrator.entrypoints.api.csv_cells import as_csv
from orchestrator.entrypoints.http.auth import is_unchanged
from orchestrator.entrypoints.http.dependencies import (
    PROBLEMS,
    CurrentUser,
    OwnJob,
    SeenJob,
    Server,
    ServerDep,
    Sha256,
)
from orchestrator.entrypoints.http.event_stream import EVENTS_AT_ONCE, stream
from orchestrator.entrypoints.http.files import BINARY, BYTES, OCTETS, stored
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute
from orchestrator.ports.providers import Handle

router = APIRouter(prefix=PREFIX, tags=["records"], route_class=ApiRoute, responses=PROBLEMS)

MAX_LOG_PIECE = 1 << 20
MAX_METRICS = 100_000
METRICS = ("name", "step", "value")
After = Annotated[int, Query(ge=0, le=2**53, description="Only events with a larger id.")]
LastEventId = Annotated[int | None, Header(alias="Last-Event-ID", ge=0, le=2**53)]

# --- sessions --------------------------------------------------------------------------------------------


@router.get("/jobs/{job_id}/sessions", operation_id="list_job_sessions", summary="Sessions of a job, oldest first")
def job_sessions(server: ServerDep, job_id: SeenJob) -> responses.Items[responses.Session]:
    """All attempts to run the job, with their outcome."""
    return responses.Items[responses.Session].model_validate({"items": server.queries.sessions(job_id=job_id)})


@router.get("/sessions", operation_id="list_sessions", summary="Sessions of all jobs, newest first")
def sessions(
    server: ServerDep,
    me: CurrentUser,
    live: Annotated[bool, Query(description="Only running sessions, without a limit.")] = False,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=64, pattern=r"^lease-[0-9a-z.]+$")] = None,
) -> responses.Page[responses.Session]:
    """Sessions of the jobs that you can see."""
    member_id = me.jobs_seen
    if live:
        return responses.Page[responses.Session].model_validate({"items": server.queries.live_sessions(member_id)})
    page = server.queries.recent_sessions(member_id, limit=limit, before=cursor)
    return responses.Page[responses.Session].model_validate(page)


def _my_session(server: ServerDep, me: CurrentUser, session_id: Annotated[str, Path(max_length=64)]) -> Row:
    row = server.queries.session(session_id)
    if row is None or not me.may_see_jobs_of(row["member_id"]):
        raise NotFoundError(f"There is no session {session_id}.")
    return row


MySession = Annotated[Row, Depends(_my_session)]


@router.get("/sessions/{session_id}", operation_id="get_session", summary="Get a session")
def session(row: MySession) -> responses.Session:
    """The session's machine, steps and outcome."""
    return responses.Session.model_validate(row)


@router.get(
    "/sessions/{session_id}/log",
    operation_id="get_session_log",
    summary="Get a session's output",
    response_class=PlainTextResponse,
)
def log(
    server: ServerDep,
    row: MySession,
    offset: Annotated[int, Query(ge=0, le=2**40)] = 0,
    limit: Annotated[int, Query(ge=16, le=MAX_LOG_PIECE)] = 1 << 16,
) -> Response:
    """UTF-8 text from byte `offset`. Continue with the header `X-Next-Offset`. Output is kept after the session."""
    text, next_offset = session_output(server, row, offset, limit)
    return PlainTextResponse(text, headers={"X-Next-Offset": str(next_offset)})


def session_output(server: Server, row: Row, offset: int, limit: int) -> tuple[str, int]:
    """A piece of a session's output and the next offset. Raises `NotFoundError` if the driver keeps no output."""
    account = Account(
        id=row["account_id"], provider=row["provider"], member_id=None, name=row["account"], config={}, created_at=0.0
    )
    with server.ctx.uow() as tx:
        account = tx.accounts.get(row["account_id"]) or account
    handle = Handle(lease_id=session_of(row["id"]), account=account, external_id=row["external_id"])
    data = server.ctx.providers.get(row["provider"]).log(handle, offset, limit)
    if data is None:
        raise NotFoundError(f"The provider {row['provider']} keeps no output of sessions.")
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)  # an incomplete character at the end belongs to the next call

    return text, offset + len(data) - len(decoder.getstate()[0])


@router.get(
    "/sessions/{session_id}/readings", operation_id="list_readings", summary="List hardware readings of a session"
)
def readings(
    server: ServerDep, row: MySession, limit: Annotated[int, Query(ge=1, le=10_000)] = 1_000
) -> responses.Items[responses.SessionReading]:
    """The newest `limit` readings, oldest first."""
    return responses.Items[responses.SessionReading].model_validate(
        {"items": server.queries.readings(row["id"], limit)}
    )


# --- files -----------------------------------------------------------------------------------------------


@router.get("/jobs/{job_id}/checkpoints", operation_id="list_checkpoints", summary="Checkpoints of a job by step")
def checkpoints(server: ServerDep, job_id: SeenJob) -> responses.Items[responses.Checkpoint]:
    """Includes pruned and refused checkpoints, which have no file."""
    return responses.Items[responses.Checkpoint].model_validate({"items": server.queries.checkpoints(job_id)})


def _checkpoint(server: ServerDep, job_id: SeenJob, sha256: Sha256) -> Row:
    row = server.queries.checkpoint(job_id, sha256)
    if row is None:
        raise NotFoundError(f"Job {job_id} has no checkpoint {sha256[:12]}.")
    return row


OneCheckpoint = Annotated[Row, Depends(_checkpoint)]


@router.get("/jobs/{job_id}/checkpoints/{sha256}", operation_id="get_checkpoint", summary="Get a checkpoint")
def checkpoint(row: OneCheckpoint) -> responses.CheckpointInFull:
    """The checkpoint with its manifest."""
    return responses.CheckpointInFull.model_validate(row)


@router.head("/jobs/{job_id}/checkpoints/{sha256}/file", include_in_schema=False)
@router.get(
    "/jobs/{job_id}/checkpoints/{sha256}/file",
    operation_id="download_checkpoint",
    summary="Download a checkpoint",
    response_class=StreamingResponse,
    responses=BINARY,
)
def checkpoint_file(server: ServerDep, request: Request, job_id: OwnJob, row: OneCheckpoint) -> Response:
    """The `.safetensors` file or the requested range. Its sha256 is the checkpoint's id."""
    if not row["key"]:
        raise NotFoundError(f"Checkpoint {row['sha256'][:12]} has no file: it is {row['state']}.")
    return stored(
        request,
        server.ctx.stores.get(row["store"]),
        row["key"],
        size=row["size"],
        sha256=row["sha256"],
        media_type=OCTETS,
        name=f"{job_id}-step-{row['step']}.safetensors",
    )


@router.head("/jobs/{job_id}/adapter", include_in_schema=False)
@router.get(
    "/jobs/{job_id}/adapter",
    operation_id="download_adapter",
    summary="Download the adapter",
    response_class=StreamingResponse,
    responses=BINARY | {200: {"content": {"application/zip": {"schema": BYTES}}}},
)
def adapter(server: ServerDep, request: Request, job_id: OwnJob) -> Response:
    """The PEFT folder as a zip file, or the requested range."""
    row = server.queries.job(job_id, server.ctx.clock.now())
    if row is None or not row["adapter_key"]:
        raise NotFoundError(f"Job {job_id} has no adapter yet. Wait until it has succeeded.")
    return stored(
        request,
        server.ctx.stores.get(row["adapter_store"]),
        row["adapter_key"],
        size=row["adapter_bytes"],
        sha256=row["adapter"]["zip_sha256"],
        media_type="application/zip",
        name=f"{job_id}-adapter.zip",
    )


# --- metrics and samples ---------------------------------------------------------------------------------


@router.get(
    "/jobs/{job_id}/metrics",
    operation_id="list_metrics",
    summary="List metrics by name and step",
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}},
)
def metrics(
    server: ServerDep,
    job_id: SeenJob,
    name: Annotated[str | None, Query(max_length=64)] = None,
    from_step: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_METRICS)] = MAX_METRICS,
    form: Annotated[Literal["json", "csv"], Query(alias="format")] = "json",
) -> responses.Items[responses.Metric]:
    """A repeated step appears once, with its newest value."""
    rows = server.queries.metrics(job_id, name=name, from_step=from_step, limit=limit)
    if form == "csv":
        text = as_csv(METRICS, rows)
        return Response(text, media_type="text/csv")  # pyright: ignore[reportReturnType]  FastAPI passes it on
    items = [responses.Metric.model_construct(name=n, step=s, value=v) for n, s, v in rows]
    return responses.Items[responses.Metric].model_construct(items=items)


def metrics_as_csv(server: Server, job_id: str) -> str:
    """All metrics of a job, up to the maximum of an answer."""
    return as_csv(METRICS, server.queries.metrics(job_id, name=None, from_step=0, limit=MAX_METRICS))


@router.get("/jobs/{job_id}/samples", operation_id="list_samples", summary="List samples")
def samples(
    server: ServerDep, job_id: SeenJob, limit: Annotated[int, Query(ge=1, le=10_000)] = 1_000
) -> responses.Items[responses.StoredSample]:
    """The model's answers to `sample_prompts`, by step."""
    return responses.Items[responses.StoredSample].model_validate({"items": server.queries.samples(job_id, limit)})


# --- events ----------------------------------------------------------------------------------------------


@router.get("/jobs/{job_id}/events", tags=["events"], operation_id="list_events", summary="List a job's events")
def events(
    server: ServerDep, job_id: SeenJob, after: After = 0, limit: Annotated[int, Query(ge=1, le=1_000)] = 200
) -> responses.Items[responses.Event]:
    """Oldest first. Continue with `after` set to the last id."""
    rows = server.queries.events(after=after, job_id=job_id, member_id=None, limit=limit)
    return responses.Items[responses.Event].model_validate({"items": rows})


@router.get(
    "/jobs/{job_id}/events/stream",
    tags=["events"],
    operation_id="stream_job_events",
    summary="Stream a job's events",
    response_class=EventSourceResponse,
)
async def job_stream(
    request: Request, server: ServerDep, me: CurrentUser, job_id: SeenJob, after: After = 0, last: LastEventId = None
) -> AsyncIterator[ServerSentEvent]:
    """From the beginning, or after `Last-Event-ID`. The SSE id is the event's id."""

    def read(start: int) -> list[Row]:
        return server.queries.events(after=start, job_id=job_id, member_id=None, limit=EVENTS_AT_ONCE)

    async for event in stream(server.event_notifier, read, last if last is not None else after):
        if not await is_unchanged(request, me):
            return
        yield event


def _start(
    server: ServerDep, last: LastEventId = None, after: Annotated[int | None, Query(ge=0, le=2**53)] = None
) -> int:
    given = last if last is not None else after
    return given if given is not None else server.queries.last_event()


@router.get(
    "/events/stream",
    tags=["events"],
    operation_id="stream_events",
    summary="Stream the events of all jobs",
    response_class=EventSourceResponse,
)
async def all_stream(
    request: Request, server: ServerDep, me: CurrentUser, start: Annotated[int, Depends(_start)]
) -> AsyncIterator[ServerSentEvent]:
    """New events, or those after `Last-Event-ID`, of the jobs that you can see."""
    member_id = me.jobs_seen

    def read(after: int) -> list[Row]:
        return server.queries.events(after=after, job_id=None, member_id=member_id, limit=EVENTS_AT_ONCE)

    async for event in stream(server.event_notifier, read, start):
        if not await is_unchanged(request, me):
            return
        yield event
