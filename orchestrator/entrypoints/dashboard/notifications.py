"""The page of notifications: channels, the log of each, and a test."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse, Response

from orchestrator.domain.errors import InvalidError
from orchestrator.entrypoints.dashboard.render import Viewer, page
from orchestrator.entrypoints.http.dependencies import Server, ServerDep
from orchestrator.ports.notifications import Topic
from orchestrator.services import notifications
from orchestrator.services.jobs import Actor

router = APIRouter(include_in_schema=False)
DELIVERIES_SHOWN = 20


@router.get("/notifications")
def listing(
    request: Request, server: ServerDep, me: Viewer, job: Annotated[str, Query(max_length=64)] = ""
) -> Response:
    """Where the viewer is told of what."""
    return _page(request, server, me, job=job)


def _page(request: Request, server: Server, me: Actor, *, status: int = 200, **more: Any) -> Response:
    book = server.app.book
    shown = [(c, book.deliveries(c.id, DELIVERIES_SHOWN)) for c in notifications.channels(server.app.office, me)]
    values = {"job": "", "secret": None, "problem": "", "url": "", "chosen": list(Topic)} | more
    return page(request, "notifications.html", me, status=status, channels=shown, topics=list(Topic), **values)


@router.post("/notifications")
def add(
    request: Request,
    server: ServerDep,
    me: Viewer,
    url: Annotated[str, Form(max_length=2_000)],
    topics: Annotated[list[Topic] | None, Form()] = None,
    job: Annotated[str, Form(max_length=64)] = "",
) -> Response:
    """A new channel; the secret of a webhook is on the page that comes back, and nowhere else."""
    chosen = topics or []
    try:
        if not chosen:
            raise InvalidError("choose at least one thing to be told of")
        _, secret = notifications.add_channel(server.app.office, me, url=url, topics=chosen, job_id=job or None)
    except InvalidError as error:
        return _page(request, server, me, status=422, problem=str(error), job=job, url=url, chosen=chosen)
    return _page(request, server, me, secret=secret)


@router.post("/notifications/{channel_id}/test")
def send_test(server: ServerDep, me: Viewer, channel_id: str) -> Response:
    """Send a message now; the log says how that went."""
    notifications.send_test(server.app.office, me, channel_id)
    return RedirectResponse("/notifications", 303)


@router.post("/notifications/{channel_id}/remove")
def remove(server: ServerDep, me: Viewer, channel_id: str) -> Response:
    """Be told no more."""
    notifications.remove_channel(server.app.office, me, channel_id)
    return RedirectResponse("/notifications", 303)
