"""All routers of the dashboard, and its error pages."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from fastapi.responses import Response

from orchestrator.domain.accounts import Actor
from orchestrator.entrypoints.dashboard import (
    adapter_exports,
    assets,
    audits,
    chats,
    compare,
    comparisons,
    curve,
    demo,
    fleet,
    hub,
    job_list,
    jobs,
    judges,
    live,
    login,
    logs,
    members,
    models,
    notes,
    notifications,
    own_machines,
    pushes,
    rating,
    setup,
    shares,
    store_choice,
    submit,
    trackers,
)
from orchestrator.entrypoints.dashboard.render import by_script, page, piece, viewer
from orchestrator.entrypoints.http import problems

PAGES = (
    assets,
    login,
    # These are before `jobs`, which takes every other action on a job.
    adapter_exports,
    chats,
    notes,
    pushes,
    shares,
    job_list,
    jobs,
    curve,
    compare,
    live,
    logs,
    own_machines,  # before `fleet`, which takes other actions on accounts
    fleet,
    hub,
    trackers,
    setup,
    store_choice,
    submit,
    audits,
    comparisons,
    judges,
    rating,
    models,
    demo,
    members,
    notifications,
)


def install(api: FastAPI) -> None:
    """Add the dashboard. Outside `/api`, errors become pages for browsers."""
    for router in (login.api, demo.api, submit.api, shares.api, *(module.router for module in PAGES)):
        api.router.routes.extend(router.routes)
    api.state.live = live.Hub(api.state.server)
    api.state.demo = demo.Demo(api.state.server)
    for kind, as_document in list(api.exception_handlers.items()):
        if kind is not WebSocketRequestValidationError:
            api.add_exception_handler(kind, _as_page_or(as_document))


async def refused(request: Request, status: int, detail: str) -> Response:
    """The response to a request that the middleware refuses."""
    document = problems.problem(status, detail)
    return await _as_page(request, document) if _wants_page(request) else document


def _as_page_or(as_document: Any) -> Any:
    async def handle(request: Request, error: Exception) -> Response:
        document: Response = as_document(request, error)
        if not _wants_page(request):
            return document
        form = isinstance(error, RequestValidationError)
        return await _as_page(
            request, document, "The form has invalid values. Correct them and try again." if form else ""
        )

    return handle


def _wants_page(request: Request) -> bool:
    return not request.url.path.startswith(("/api/", "/v1/")) and "text/html" in request.headers.get("accept", "")


async def _as_page(request: Request, document: Response, detail: str = "") -> Response:
    """A problem document as a page. Headers are kept, except those that describe the body."""
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
    """The viewer, or None. An error page must render even when the database fails."""
    try:
        return await viewer(request)
    except Exception:  # noqa: BLE001  no login, or the error that this page reports
        return None
