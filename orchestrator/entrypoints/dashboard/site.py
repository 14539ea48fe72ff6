"""All pages together, and what their errors look like to people."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from fastapi.responses import Response

from orchestrator.entrypoints.dashboard import (
    assets,
    curve,
    demo,
    fleet,
    hub,
    jobs,
    live,
    login,
    logs,
    members,
    notifications,
    submit,
)
from orchestrator.entrypoints.dashboard.render import by_script, page, piece, viewer
from orchestrator.entrypoints.http import problems
from orchestrator.services.jobs import Actor

PAGES = (assets, login, jobs, curve, live, logs, fleet, hub, submit, demo, members, notifications)


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
    for kind, as_document in list(api.exception_handlers.items()):
        if kind is not WebSocketRequestValidationError:
            api.add_exception_handler(kind, _as_page_or(as_document))


async def refused(request: Request, status: int, detail: str) -> Response:
    """What the gate does not let in, in words for whoever asked."""
    document = problems.problem(status, detail)
    return await _as_page(request, document) if _wants_page(request) else document


def _as_page_or(as_document: Any) -> Any:
    async def handle(request: Request, error: Exception) -> Response:
        document: Response = as_document(request, error)
        if not _wants_page(request):
            return document
        form = isinstance(error, RequestValidationError)
        return await _as_page(request, document, "something in this form is not right" if form else "")

    return handle


def _wants_page(request: Request) -> bool:
    return not request.url.path.startswith("/api/") and "text/html" in request.headers.get("accept", "")


async def _as_page(request: Request, document: Response, detail: str = "") -> Response:
    """The problem document in words; its headers, but for those that tell of its body, stay."""
    found = json.loads(bytes(document.body))
    headers = {k: v for k, v in document.headers.items() if not k.startswith("content-")}
    status, detail = document.status_code, detail or found["detail"]
    faults = [(f["pointer"].strip("/").replace("/", "."), f["detail"]) for f in found.get("errors", ())]
    if by_script(request):
        headers |= {"HX-Retarget": "#notice", "HX-Reswap": "innerHTML"}
        return piece("error_piece.html", status=status, headers=headers, detail=detail, faults=faults)
    if status == 401:
        url = request.app.state.server.ctx.server_url()
        return page(request, "login.html", None, status=401, used=False, server_url=url)
    me = await _known(request)
    return page(request, "error.html", me, status=status, headers=headers, code=status, detail=detail, faults=faults)


async def _known(request: Request) -> Actor | None:
    """Who is looking, if that can be told: a page of errors is shown whatever else is broken."""
    try:
        return await viewer(request)
    except Exception:  # noqa: BLE001  without a login, or the very trouble that this page tells of
        return None
