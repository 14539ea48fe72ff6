"""What machines call: one lease's life, and the files it was granted. A lease's token is good for that lease alone."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Path, Query, Request
from fastapi.responses import FileResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.routing import Route

from orchestrator.domain.errors import ConflictError, InvalidError, NotFoundError
from orchestrator.entrypoints.api import requests
from orchestrator.entrypoints.http.auth import lease_holder
from orchestrator.entrypoints.http.dependencies import PROBLEMS, Server, ServerDep
from orchestrator.entrypoints.http.files import BINARY, OCTETS, stored
from orchestrator.entrypoints.http.uploads import spooled
from orchestrator.services import checkpoints, leases
from worker.shared.messages import (
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
    Wire,
)

router = APIRouter(tags=["worker"], responses=PROBLEMS)
LeaseId = Annotated[str, Depends(lease_holder)]


@router.post("/leases/{lease_id}/report", operation_id="report", summary="Progress")
async def report(server: ServerDep, lease_id: LeaseId, said: Report) -> Directive:
    """Keeps the lease alive. A report seen before changes nothing."""
    _same(lease_id, said.lease)
    answer = await server.clerk.write((lease_id, said.seq), lambda tx: leases.reported(server.ctx, tx, said))
    server.tally.reports.inc()
    return answer


def _same(path: str, body: str) -> None:
    if path != body:
        raise InvalidError("the message speaks of another lease", [("/lease", f"is {body}, the address says {path}")])


@router.post("/leases/{lease_id}/start", operation_id="start_lease", summary="A worker is up")
async def start(server: ServerDep, lease_id: LeaseId, asked: StartRequest) -> Assignment:
    """Hands out the job. The same `nonce` again gets the same answer, another process 409."""
    begun = await server.clerk.write((lease_id, 0), lambda tx: leases.begin(server.ctx, tx, lease_id, asked))
    return await run_in_threadpool(leases.assignment, server.ctx, begun)


@router.post("/leases/{lease_id}/offer", operation_id="offer_checkpoint", summary="Make a checkpoint the head")
def offer(server: ServerDep, lease_id: LeaseId, said: Offer) -> OfferReply:
    """The stored file is read back first. A refusal says why and changes nothing."""
    _same(lease_id, said.lease)
    reply = checkpoints.offer(server.ctx, said)
    server.tally.offers.labels(str(reply.committed).lower()).inc()
    return reply


@router.post(
    "/leases/{lease_id}/release", status_code=204, operation_id="release_lease", summary="Goodbye before the end"
)
def release(server: ServerDep, lease_id: LeaseId, said: Release) -> None:
    """The job is free for another machine at once."""
    _same(lease_id, said.lease)
    leases.release(server.ctx, said)


@router.post("/leases/{lease_id}/finish", status_code=204, operation_id="finish_lease", summary="The last word")
async def finish(server: ServerDep, lease_id: LeaseId, said: Finish) -> None:
    """The job is done with an adapter, or cannot go on there."""
    _same(lease_id, said.lease)
    failure = said.failure
    if failure is None or failure.bad_checkpoint is not None:
        await run_in_threadpool(leases.finish, server.ctx, said)
        return
    await server.clerk.write((lease_id, said.seq), lambda tx: leases.failed(server.ctx, tx, said, failure))
    server.ctx.wake()


def _quick(kind: type[Wire], work: Callable[[Server, str, Any], Awaitable[Wire | None]]) -> Any:
    async def endpoint(request: Request) -> Response:
        server, lease_id = request.app.state.server, request.path_params["lease_id"]
        await lease_holder(request, lease_id, None)
        request.scope["trainhop.reads"] = kind.__name__
        answer = await work(server, lease_id, kind.model_validate_json(await request.body()))
        if answer is None:
            return Response(status_code=204)
        return Response(answer.model_dump_json(), media_type="application/json")

    return endpoint


def quick_routes(prefix: str) -> list[Route]:
    """The calls that come by the thousand, past FastAPI: its help costs thrice the work. It still documents them."""
    quick = {"report": _quick(Report, report), "start": _quick(StartRequest, start), "finish": _quick(Finish, finish)}
    return [
        Route(f"{prefix}/leases/{{lease_id}}/{name}", endpoint, methods=["POST"], include_in_schema=False)
        for name, endpoint in quick.items()
    ]


@router.post("/leases/{lease_id}/grants", operation_id="more_grants", summary="More places to upload to")
def grants(server: ServerDep, lease_id: LeaseId, asked: Annotated[requests.GrantsCreate, Body()]) -> list[Grant]:
    """For a worker that has used up what it was given."""
    return leases.grants(server.ctx, lease_id, asked.fence, GrantKind(asked.kind), asked.count)


# --- granted files ---------------------------------------------------------------------------------------

Key = Annotated[str, Path(max_length=255, description="Chosen by the server, as in the grant.")]
Signature = Annotated[str, Header(alias="X-Grant", max_length=128, description="As in the grant.")]


StoreName = Annotated[str, Query(alias="store", max_length=32, description="As in the grant.")]


def _may(direction: str) -> Any:
    async def check(server: ServerDep, key: Key, grant: Signature = "", store: StoreName = "local") -> str:
        wanted = server.app.store.links.signature(direction, key, store)
        if not hmac.compare_digest(wanted.encode(), grant.encode()):
            raise HTTPException(403, "this grant is not for this file")
        return key

    return Depends(check)


@router.head("/blobs/{key:path}", include_in_schema=False)
@router.get(
    "/blobs/{key:path}",
    operation_id="read_blob",
    summary="Read a granted file",
    response_class=FileResponse,
    responses=BINARY,
)
def read_blob(
    server: ServerDep, request: Request, key: Annotated[str, _may("get")], store: StoreName = "local"
) -> Response:
    """The bytes, or the range of them that is asked for."""
    if store != server.app.store.name:
        elsewhere = server.ctx.stores.get(store)
        found = elsewhere.stat(key)
        return stored(request, elsewhere, key, size=found.size, sha256=found.sha256, media_type=OCTETS)
    path = server.app.store.path(key)
    if not path.is_file():
        raise NotFoundError(f"{key} is not in the store")
    return FileResponse(path, media_type=OCTETS)


@router.put(
    "/blobs/{key:path}",
    status_code=204,
    operation_id="write_blob",
    summary="Write a granted file",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def write_blob(server: ServerDep, request: Request, key: Annotated[str, _may("put")]) -> None:
    """Creates the file whole or not at all, while the lease lasts. The same bytes again are no error, others are refused."""
    await run_in_threadpool(checkpoints.require_open, server.ctx, key)
    async with spooled(request, server.app.store.folder) as path:
        await run_in_threadpool(checkpoints.require_open, server.ctx, key)  # bytes take their time
        if not await run_in_threadpool(server.app.store.adopt, key, path):
            raise ConflictError(f"{key} was written before, with different bytes")
