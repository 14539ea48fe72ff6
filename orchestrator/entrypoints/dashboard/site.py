"""All pages together, and what their errors look like to people."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from orchestrator.domain.errors import InvalidError, TrainhopError
from orchestrator.entrypoints import problems
from orchestrator.entrypoints.dashboard import (
    assets,
    curve,
    demo,
    fleet,
    jobs,
    live,
    login,
    logs,
    notices,
    people,
    submit,
)
from orchestrator.entrypoints.dashboard.render import by_script, page, piece

PAGES = (assets, login, jobs, curve, live, logs, fleet, submit, demo, people, notices)


def install(api: FastAPI) -> None:
    """Add the pages; outside `/api`, errors become pages for whoever asked with a browser."""
    below = APIRouter(prefix="/api/v1")
    for part in (login.api, demo.api, submit.api):
        below.include_router(part)
    api.include_router(below)
    for module in PAGES:
        api.include_router(module.router)
    api.state.live = live.Hub(api.state.server)
    api.state.demo = demo.Demo(api.state.server)
    for kind in (HTTPException, TrainhopError, RequestValidationError):
        as_document = api.exception_handlers[kind]
        api.add_exception_handler(kind, _as_page_or(as_document))


def _as_page_or(as_document: Any) -> Any:
    async def handle(request: Request, error: Exception) -> Response:
        if request.url.path.startswith("/api/") or not _wants_page(request):
            return as_document(request, error)
        return _as_page(request, error)

    return handle


def _wants_page(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


def _as_page(request: Request, error: Exception) -> Response:
    server = request.app.state.server
    if isinstance(error, TrainhopError):
        status, detail = problems.from_domain(error).status_code, str(error)
        faults = list(error.problems) if isinstance(error, InvalidError) else []
    elif isinstance(error, RequestValidationError):
        status, detail, faults = (
            422,
            "something in this form is not right",
            [(".".join(map(str, f["loc"][1:])), f["msg"]) for f in error.errors()],
        )
    else:
        assert isinstance(error, HTTPException)
        status, detail, faults = error.status_code, str(error.detail), []
    if by_script(request):
        headers = {"HX-Retarget": "#notice", "HX-Reswap": "innerHTML"}
        return piece("error_piece.html", status=status, headers=headers, detail=detail, faults=faults)
    if status == 401:
        return page(request, "login.html", None, status=401, used=False, server_url=server.ctx.server_url())
    return page(request, "error.html", None, status=status, code=status, detail=detail, faults=faults)
