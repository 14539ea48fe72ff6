"""Liveness, readiness and Prometheus metrics."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from orchestrator.domain.errors import UnavailableError
from orchestrator.entrypoints.http.dependencies import PROBLEMS, Server, ServerDep

router = APIRouter(tags=["health"])
_PROBE = "probe/ready"
FRESH_S = 2.0


@router.get("/healthz", operation_id="health", summary="Check liveness", response_class=PlainTextResponse)
async def healthz() -> Response:
    """Always 200 while the process runs."""
    return PlainTextResponse("ok\n")


@router.get(
    "/readyz",
    operation_id="ready",
    summary="Check readiness",
    response_class=PlainTextResponse,
    responses={503: PROBLEMS[503]},
)
def readyz(server: ServerDep, request: Request) -> Response:
    """200 if the database and the store accept writes and no loop of the server is late, else 503 with the reason.

    The writes are tried every few seconds.
    """
    server.app.guard.check()
    if late := server.app.rounds.late():
        words = ", ".join(f"{name} ({age:.0f} s ago)" for name, age in sorted(late.items()))
        raise UnavailableError(
            f"Some loops have not ended a round in time: {words}. See the server's log and restart it."
        )
    request.app.state.readiness.check()
    return PlainTextResponse("ready\n")


class Readiness:
    """Tries the database and the store by small writes. Strangers may ask, so a success counts for `fresh_s`."""

    def __init__(
        self, write: Callable[[], object], *, fresh_s: float = FRESH_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write, self._fresh_s, self._clock = write, fresh_s, clock
        self._lock, self._ready_until = threading.Lock(), float("-inf")

    def check(self) -> None:
        """Raise the error of the write. Those who ask at the same time share one."""
        with self._lock:
            if self._clock() >= self._ready_until:
                self._write()
                self._ready_until = self._clock() + self._fresh_s


def install(api: FastAPI, server: Server) -> None:
    """Add the routes."""

    def write() -> None:
        with server.ctx.uow() as tx:
            tx.idempotency.delete_expired(0.0)
        server.app.store.put_stream(_PROBE, iter((b"ready",)))

    api.state.readiness = Readiness(write)
    api.router.routes.extend(router.routes)


@router.get("/metrics", operation_id="prometheus", summary="Get Prometheus metrics", response_class=PlainTextResponse)
def metrics(server: ServerDep) -> Response:
    """In the Prometheus text format."""
    return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)
