"""The notifications page: channels with their logs and a test."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse, Response

from orchestrator.domain.accounts import Actor
from orchestrator.domain.errors import InvalidError
from orchestrator.domain.notifications import Topic
from orchestrator.entrypoints.dashboard.render import Viewer, page
from orchestrator.entrypoints.http.dependencies import Server, ServerDep
from orchestrator.services import notifications

router = APIRouter(include_in_schema=False)
DELIVERIES_SHOWN = 20


@router.get("/notifications")
def listing(
    request: Request, server: ServerDep, me: Viewer, job: Annotated[str, Query(max_length=64)] = ""
) -> Response:
    """The viewer's channels."""
    return _page(request, server, me, job=job)


def _page(request: Request, server: Server, me: Actor, *, status: int = 200, **more: Any) -> Response:
    context = server.app.notifications
    channels = notifications.channels(context, me)
    shown = [(c, notifications.deliveries(context, me, c.id, DELIVERIES_SHOWN)) for c in channels]
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
    """Add a channel. A webhook's secret is shown only on this page."""
    chosen = topics or []
    try:
        if not chosen:
            raise InvalidError("No topic is selected. Choose at least one.")
        _, secret = notifications.add_channel(server.app.notifications, me, url=url, topics=chosen, job_id=job or None)
    except InvalidError as error:
        return _page(request, server, me, status=422, problem=str(error), job=job, url=url, chosen=chosen)
    return _page(request, server, me, secret=secret)


@router.post("/notifications/{channel_id}/test")
def send_test(server: ServerDep, me: Viewer, channel_id: str) -> Response:
    """Send a test message. The result is in the channel's log."""
    notifications.send_test(server.app.notifications, me, channel_id)
    return RedirectResponse("/notifications", 303)


@router.post("/notifications/{channel_id}/remove")
def remove(server: ServerDep, me: Viewer, channel_id: str) -> Response:
    """Remove a channel."""
    notifications.remove_channel(server.app.notifications, me, channel_id)
    return RedirectResponse("/notifications", 303)
