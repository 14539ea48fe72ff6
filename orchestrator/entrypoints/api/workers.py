"""HTTP endpoints for workers: the calls of a lease and its granted files. They need the lease's token."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Body, Depends, Header, Path, Query, Request
from fastapi.responses import FileResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.routing import Route

from orchestrator.domain.errors import InvalidError, NotFoundError
from orchestrator.entrypoints.api import requests
from orchestrator.entrypoints.http.auth import lease_holder
from orchestrator.entrypoints.http.dependencies import PROBLEMS, Server, ServerDep
from orchestrator.entrypoints.http.files import BINARY, OCTETS, has_current, stored
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute, aside
from orchestrator.entrypoints.http.uploads import spooled
from orchestrator.services import assignments, machine_chats, read_grants, received_files, worker_messages
from orchestrator.services.worker_messages import Start, WorkerMessage
from worker.shared.chat import ChatReply, ChatTask
from worker.shared.messages import (
    GRANT_HEADER,
    Assignment,
    Directive,
    Finish,
    Grant,
    GrantKind,
    Offer,
    OfferReply,
    Release,
    Report,
    StartRequest,
    Ticket,
)
from worker.shared.wire import Wire

router = APIRouter(prefix=PREFIX, tags=["worker"], route_class=ApiRoute, responses=PROBLEMS)
LeaseId = Annotated[str, Depends(lease_holder)]


@router.post("/leases/{lease_id}/report", operation_id="report", summary="Progress")
async def report(server: ServerDep, lease_id: LeaseId, message: Report) -> Directive:
    """Extends the lease. A repeated report has no effect."""
    _require_same(lease_id, message.lease)
    directive = await _receive(server, message, message.seq)
    server.metrics.reports.inc()
    return directive


def _require_same(path: str, body: str) -> None:
    if path != body:
        raise InvalidError("The message belongs to another lease.", [("/lease", f"is {body}, the URL has {path}")])


async def _receive(server: Server, message: WorkerMessage, seq: int) -> Any:
    """`worker_messages.receive`, with one transaction for messages that arrive together.

    Stores are called in a thread.
    """
    ctx = server.ctx
    if worker_messages.asks_store_before(message):
        checked = await run_in_threadpool(worker_messages.check, ctx, message)
    else:
        checked = worker_messages.check(ctx, message)
    applied = await server.write_batcher.write((message.lease, seq), lambda tx: worker_messages.apply(ctx, tx, checked))
    if worker_messages.asks_store_after(message, applied):
        return await run_in_threadpool(worker_messages.conclude, ctx, message, applied)
    return worker_messages.conclude(ctx, message, applied)


@router.post("/leases/{lease_id}/start", operation_id="start_lease", summary="Start a lease")
async def start(server: ServerDep, lease_id: LeaseId, request: StartRequest) -> Assignment:
    """Returns the job. The same `nonce` again gets the same answer, another process gets 409."""
    return await _receive(server, Start(lease=lease_id, request=request), 0)


@router.post("/leases/{lease_id}/offer", operation_id="offer_checkpoint", summary="Offer a checkpoint")
async def offer(server: ServerDep, lease_id: LeaseId, message: Offer) -> OfferReply:
    """The stored file is read back and verified, and becomes the head. A refusal has a reason and changes nothing."""
    _require_same(lease_id, message.lease)
    reply = await _receive(server, message, message.seq)
    server.metrics.offers.labels(str(reply.committed).lower()).inc()
    return reply


@router.post("/leases/{lease_id}/release", status_code=204, operation_id="release_lease", summary="Release a lease")
async def release(server: ServerDep, lease_id: LeaseId, message: Release) -> None:
    """Another machine can run the job at once."""
    _require_same(lease_id, message.lease)
    await _receive(server, message, message.seq)


@router.post(
    "/leases/{lease_id}/finish",
    status_code=204,
    operation_id="finish_lease",
    summary="Finish a lease",
    response_model=None,
    responses={200: {"model": Ticket, "description": "The lease with which the session continues."}},
)
async def finish(server: ServerDep, lease_id: LeaseId, message: Finish) -> Ticket | None:
    """The job has succeeded with an adapter, or it failed on this machine.

    A message with `can_continue` may be answered with the ticket of the evaluation that follows.
    """
    _require_same(lease_id, message.lease)
    return await _receive(server, message, message.seq)


def _quick(kind: type[Wire], work: Callable[[Server, str, Any], Awaitable[Wire | None]]) -> Any:
    async def endpoint(request: Request) -> Response:
        server, lease_id = request.app.state.server, request.path_params["lease_id"]
        await lease_holder(request, lease_id, None)
        request.scope["trainhop.reads"] = kind.__name__
        body = await request.body()
        message = await aside(body, lambda: kind.model_validate_json(body))
        answer = await work(server, lease_id, message)
        if answer is None:
            return Response(status_code=204)
        return Response(answer.model_dump_json(), media_type="application/json")

    return endpoint


def quick_routes() -> list[Route]:
    """Fast routes for messages, without FastAPI's overhead of three times the work. FastAPI documents them."""
    quick = {
        "start": _quick(StartRequest, start),
        "report": _quick(Report, report),
        "offer": _quick(Offer, offer),
        "release": _quick(Release, release),
        "finish": _quick(Finish, finish),
    }
    return [
        Route(f"{PREFIX}/leases/{{lease_id}}/{name}", endpoint, methods=["POST"], include_in_schema=False)
        for name, endpoint in quick.items()
    ]


@router.post("/leases/{lease_id}/grants", operation_id="more_grants", summary="Request more upload grants")
def grants(server: ServerDep, lease_id: LeaseId, request: Annotated[requests.GrantsCreate, Body()]) -> list[Grant]:
    """For a worker that has used its upload grants."""
    through = server.app.store.links if request.through_server else None
    return assignments.grants(
        server.ctx, lease_id, request.fence, GrantKind(request.kind), request.count, through=through
    )


@router.post("/leases/{lease_id}/chat", operation_id="exchange_chat", summary="Send answers and take a question")
def chat(server: ServerDep, lease_id: LeaseId, reply: ChatReply) -> ChatTask:
    """For the session of a chat, which sends the next events of its answer or asks for a question.

    Repeated events have no effect. Nothing of it is stored.
    """
    return machine_chats.exchange(server.ctx, server.app.chat_rooms, lease_id, reply)


# --- granted files ---------------------------------------------------------------------------------------

Key = Annotated[str, Path(max_length=255, description="The key from the grant.")]
Signature = Annotated[str, Header(alias=GRANT_HEADER, max_length=128, description="The signature from the grant.")]

StoreName = Annotated[str, Query(alias="store", max_length=32, description="The store from the grant.")]


def _may_write(server: ServerDep, key: Key, grant: Signature = "", store: StoreName = "local") -> str:
    wanted = server.app.store.links.signature("put", key, store)
    if not hmac.compare_digest(wanted.encode(), grant.encode()):
        raise HTTPException(403, "This grant is not valid for this file.")
    return key


def _may_read(server: ServerDep, key: Key, grant: Signature = "", store: StoreName = "local") -> str:
    if not read_grants.is_valid(server.app.store.links.signature("get", key, store), grant):
        raise HTTPException(403, "This grant is not valid for this file.")
    read_grants.require_live(server.ctx, grant)
    return key


@router.head("/blobs/{key:path}", include_in_schema=False)
@router.get(
    "/blobs/{key:path}",
    operation_id="read_blob",
    summary="Download a granted file",
    response_class=FileResponse,
    responses=BINARY,
)
def read_blob(
    server: ServerDep, request: Request, key: Annotated[str, Depends(_may_read)], store: StoreName = "local"
) -> Response:
    """The file or the requested range, while the lease is live."""
    if store != server.app.store.name:
        elsewhere = server.ctx.stores.get(store)
        found = elsewhere.stat(key)
        return stored(request, elsewhere, key, size=found.size, sha256=found.sha256, media_type=OCTETS)
    path = server.app.store.path(key)
    if not path.is_file():
        raise NotFoundError(f"The file {key} is not in the store.")
    file = FileResponse(path, media_type=OCTETS, stat_result=path.stat())
    etag = file.headers["etag"]
    return Response(status_code=304, headers={"ETag": etag}) if has_current(request, etag) else file


@router.put(
    "/blobs/{key:path}",
    status_code=204,
    operation_id="write_blob",
    summary="Upload a granted file",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def write_blob(
    server: ServerDep, request: Request, key: Annotated[str, Depends(_may_write)], store: StoreName = "local"
) -> None:
    """Creates the file atomically while the lease is live. The same bytes again succeed. Others are refused."""
    await run_in_threadpool(received_files.may_upload, server.ctx, key)
    local = server.app.store
    async with spooled(request, local.folder) as path:
        if store == local.name:
            put, limiter = partial(local.adopt, key, path), None
        else:
            put, limiter = partial(received_files.put_once, server.ctx, store, key, path), server.store_limiter
        await to_thread.run_sync(received_files.store_once, server.ctx, key, put, limiter=limiter)
