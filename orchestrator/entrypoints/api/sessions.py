"""What a job leaves behind: sessions, checkpoints, the adapter, metrics, samples, events."""

# ruff: noqa: FAST003  a dependency reads the path: what belongs to others must not be found
from __future__ import annotations

import codecs
import csv
import io
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from orchestrator.adapters.database.queries import Row
from orchestrator.domain.errors import NotFoundError
from orchestrator.domain.model import Account, Role
from orchestrator.entrypoints.api import responses
from orchestrator.entrypoints.http.auth import is_still_known
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, MyJob, Server, ServerDep, Sha256
from orchestrator.entrypoints.http.event_stream import EVENTS_AT_ONCE, stream
from orchestrator.entrypoints.http.files import BINARY, OCTETS, stored
from orchestrator.ports.providers import Handle

router = APIRouter(tags=["records"], responses=PROBLEMS)

MAX_LOG_PIECE = 1 << 20
MAX_METRICS = 100_000
After = Annotated[int, Query(ge=0, le=2**53, description="Only events with a larger id.")]
LastEventId = Annotated[int | None, Header(alias="Last-Event-ID", ge=0, le=2**53)]


# --- sessions --------------------------------------------------------------------------------------------


@router.get("/jobs/{job_id}/sessions", operation_id="list_job_sessions", summary="Sessions of a job, oldest first")
def job_sessions(server: ServerDep, job_id: MyJob) -> responses.Items[responses.Session]:
    """Every attempt on every machine, with how it ended."""
    return responses.Items[responses.Session].model_validate({"items": server.views.sessions(job_id=job_id)})


@router.get("/sessions", operation_id="list_sessions", summary="Sessions of all jobs, newest first")
def sessions(
    server: ServerDep,
    me: CurrentUser,
    live: Annotated[bool, Query(description="Only those that run now, all of them.")] = False,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=64, pattern=r"^lease-[0-9a-z]+$")] = None,
) -> responses.Page[responses.Session]:
    """Members see those of their own jobs."""
    member_id = None if me.role is Role.ADMIN else me.member_id
    if live:
        return responses.Page[responses.Session].model_validate({"items": server.views.live_sessions(member_id)})
    page = server.views.recent_sessions(member_id, limit=limit, before=cursor)
    return responses.Page[responses.Session].model_validate(page)


def _my_session(server: ServerDep, me: CurrentUser, session_id: Annotated[str, Path(max_length=64)]) -> Row:
    row = server.views.session(session_id)
    if row is None or not me.may_see(row["member_id"]):
        raise NotFoundError(f"there is no session {session_id}")
    return row


MySession = Annotated[Row, Depends(_my_session)]


@router.get("/sessions/{session_id}", operation_id="get_session", summary="One session")
def session(row: MySession) -> responses.Session:
    """Where it ran, on what, and how it ended."""
    return responses.Session.model_validate(row)


@router.get(
    "/sessions/{session_id}/log",
    operation_id="get_session_log",
    summary="A session's output",
    response_class=PlainTextResponse,
)
def log(
    server: ServerDep,
    row: MySession,
    offset: Annotated[int, Query(ge=0, le=2**40)] = 0,
    limit: Annotated[int, Query(ge=16, le=MAX_LOG_PIECE)] = 1 << 16,
) -> Response:
    """UTF-8 text from byte `offset`; go on with the header `X-Next-Offset`. Kept also after the session has ended."""
    text, next_offset = session_output(server, row, offset, limit)
    return PlainTextResponse(text, headers={"X-Next-Offset": str(next_offset)})


def session_output(server: Server, row: Row, offset: int, limit: int) -> tuple[str, int]:
    """A piece of a session's output and the byte after it; raises `NotFoundError` where the driver keeps none."""
    account = Account(
        id=row["account_id"], provider=row["provider"], member_id=None, name=row["account"], config={}, created_at=0.0
    )
    with server.ctx.uow() as tx:
        account = tx.account(row["account_id"]) or account
    handle = Handle(lease_id=row["id"], account=account, external_id=row["external_id"])
    data = server.ctx.providers.get(row["provider"]).log(handle, offset, limit)
    if data is None:
        raise NotFoundError(f"{row['provider']} keeps no output of its sessions")
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)  # a character that is cut at the end waits for the next call
    return text, offset + len(data) - len(decoder.getstate()[0])


@router.get("/sessions/{session_id}/readings", operation_id="list_readings", summary="How a session's machine is doing")
def readings(
    server: ServerDep, row: MySession, limit: Annotated[int, Query(ge=1, le=10_000)] = 1_000
) -> responses.Items[responses.Reading]:
    """The newest `limit` readings, oldest first."""
    return responses.Items[responses.Reading].model_validate({"items": server.views.readings(row["id"], limit)})


# --- files -----------------------------------------------------------------------------------------------


@router.get("/jobs/{job_id}/checkpoints", operation_id="list_checkpoints", summary="Checkpoints of a job by step")
def checkpoints(server: ServerDep, job_id: MyJob) -> responses.Items[responses.Checkpoint]:
    """Also those that were pruned or refused, which have no file any more."""
    return responses.Items[responses.Checkpoint].model_validate({"items": server.views.checkpoints(job_id)})


def _checkpoint(server: ServerDep, job_id: MyJob, sha256: Sha256) -> Row:
    row = server.views.checkpoint(job_id, sha256)
    if row is None:
        raise NotFoundError(f"job {job_id} has no checkpoint {sha256[:12]}")
    return row


OneCheckpoint = Annotated[Row, Depends(_checkpoint)]


@router.get("/jobs/{job_id}/checkpoints/{sha256}", operation_id="get_checkpoint", summary="One checkpoint")
def checkpoint(row: OneCheckpoint) -> responses.CheckpointInFull:
    """The checkpoint with its manifest."""
    return responses.CheckpointInFull.model_validate(row)


@router.head("/jobs/{job_id}/checkpoints/{sha256}/file", include_in_schema=False)
@router.get(
    "/jobs/{job_id}/checkpoints/{sha256}/file",
    operation_id="download_checkpoint",
    summary="A checkpoint's file",
    response_class=StreamingResponse,
    responses=BINARY,
)
def checkpoint_file(server: ServerDep, request: Request, job_id: MyJob, row: OneCheckpoint) -> Response:
    """The `.safetensors` file, or the range of it that is asked for; its sha256 is the checkpoint's id."""
    if not row["key"]:
        raise NotFoundError(f"the file of checkpoint {row['sha256'][:12]} was deleted: it is {row['state']}")
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
    summary="The finished adapter",
    response_class=StreamingResponse,
    responses=BINARY,
)
def adapter(server: ServerDep, request: Request, job_id: MyJob) -> Response:
    """The PEFT folder as a zip, or the range of it that is asked for."""
    row = server.views.job(job_id, server.ctx.clock.now())
    if row is None or not row["adapter_key"]:
        raise NotFoundError(f"job {job_id} has no adapter yet")
    return stored(
        request,
        server.ctx.stores.get(row["adapter_store"]),
        row["adapter_key"],
        size=row["adapter_bytes"],
        sha256=row["adapter"]["zip_sha256"],
        media_type="application/zip",
        name=f"{job_id}-adapter.zip",
    )


# --- curves and answers ----------------------------------------------------------------------------------


@router.get("/jobs/{job_id}/metrics", operation_id="list_metrics", summary="Reported values by name and step")
def metrics(
    server: ServerDep,
    job_id: MyJob,
    name: Annotated[str | None, Query(max_length=64)] = None,
    from_step: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_METRICS)] = MAX_METRICS,
    form: Annotated[Literal["json", "csv"], Query(alias="format")] = "json",
) -> responses.Items[responses.Metric]:
    """A step that was run twice counts once, with its newest value."""
    rows = server.views.metrics(job_id, name=name, from_step=from_step, limit=limit)
    if form == "csv":
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerows([("name", "step", "value"), *rows])
        return Response(text.getvalue(), media_type="text/csv")  # pyright: ignore[reportReturnType]  FastAPI passes it on
    items = [responses.Metric.model_construct(name=n, step=s, value=v) for n, s, v in rows]
    return responses.Items[responses.Metric].model_construct(items=items)


@router.get("/jobs/{job_id}/samples", operation_id="list_samples", summary="What the model answered")
def samples(
    server: ServerDep, job_id: MyJob, limit: Annotated[int, Query(ge=1, le=10_000)] = 1_000
) -> responses.Items[responses.Sample]:
    """Answers to the job's `sample_prompts`, by step."""
    return responses.Items[responses.Sample].model_validate({"items": server.views.samples(job_id, limit)})


# --- events ----------------------------------------------------------------------------------------------


@router.get("/jobs/{job_id}/events", tags=["events"], operation_id="list_events", summary="What happened to a job")
def events(
    server: ServerDep, job_id: MyJob, after: After = 0, limit: Annotated[int, Query(ge=1, le=1_000)] = 200
) -> responses.Items[responses.Event]:
    """Oldest first; go on with `after` set to the last id."""
    rows = server.views.events(after=after, job_id=job_id, member_id=None, limit=limit)
    return responses.Items[responses.Event].model_validate({"items": rows})


@router.get(
    "/jobs/{job_id}/events/stream",
    tags=["events"],
    operation_id="stream_job_events",
    summary="What happens to a job, as it happens",
    response_class=EventSourceResponse,
)
async def job_stream(
    request: Request, server: ServerDep, job_id: MyJob, after: After = 0, last: LastEventId = None
) -> AsyncIterator[ServerSentEvent]:
    """From the beginning, or after `Last-Event-ID`. Each event's id is the event's own."""

    def read(start: int) -> list[Row]:
        return server.views.events(after=start, job_id=job_id, member_id=None, limit=EVENTS_AT_ONCE)

    async for event in stream(server.pulse, read, last if last is not None else after):
        if not await is_still_known(request):
            return
        yield event


def _start(
    server: ServerDep, last: LastEventId = None, after: Annotated[int | None, Query(ge=0, le=2**53)] = None
) -> int:
    given = last if last is not None else after
    return given if given is not None else server.views.last_event()


@router.get(
    "/events/stream",
    tags=["events"],
    operation_id="stream_events",
    summary="What happens to all jobs, as it happens",
    response_class=EventSourceResponse,
)
async def all_stream(
    request: Request, server: ServerDep, me: CurrentUser, start: Annotated[int, Depends(_start)]
) -> AsyncIterator[ServerSentEvent]:
    """From now on, or after `Last-Event-ID`. Members see what happens to their own jobs."""
    member_id = None if me.role is Role.ADMIN else me.member_id

    def read(after: int) -> list[Row]:
        return server.views.events(after=after, job_id=None, member_id=member_id, limit=EVENTS_AT_ONCE)

    async for event in stream(server.pulse, read, start):
        if not await is_still_known(request):
            return
        yield event
