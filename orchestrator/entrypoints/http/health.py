"""Whether the server lives, whether it can work, and its numbers for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from orchestrator.entrypoints.http.dependencies import PROBLEMS, ServerDep

router = APIRouter(tags=["health"])
_PROBE = "probe/ready"


@router.get("/healthz", operation_id="health", summary="Is the process alive?", response_class=PlainTextResponse)
async def healthz() -> Response:
    """Always 200, without a look at anything."""
    return PlainTextResponse("ok\n")


@router.get(
    "/readyz",
    operation_id="ready",
    summary="Can the server work?",
    response_class=PlainTextResponse,
    responses={503: PROBLEMS[503]},
)
def readyz(server: ServerDep) -> Response:
    """200 if the database and the store take writes, 503 with the reason otherwise."""
    with server.ctx.uow() as tx:
        tx.forget_remembered(0.0)
    server.app.store.put_stream(_PROBE, iter((b"ready",)))
    return PlainTextResponse("ready\n")


@router.get("/metrics", operation_id="prometheus", summary="Numbers for Prometheus", response_class=PlainTextResponse)
def metrics(server: ServerDep) -> Response:
    """In Prometheus' text format."""
    return Response(generate_latest(server.tally.registry), media_type=CONTENT_TYPE_LATEST)
