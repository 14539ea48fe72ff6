"""The event stream of a job's page: sections as HTML, points as JSON. Viewers with equal rights share one rendering.

An event's id is the cursor of the newest point, so a browser that reconnects resumes there. A section is sent when it
differs from the last one that this stream has sent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any

import structlog
from anyio import to_thread
from fastapi import APIRouter, Header, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from orchestrator.entrypoints.dashboard import curve
from orchestrator.entrypoints.dashboard.curve import Cursor, ViewedJob
from orchestrator.entrypoints.dashboard.job_view import look
from orchestrator.entrypoints.dashboard.render import Viewer
from orchestrator.entrypoints.http.auth import is_unchanged
from orchestrator.entrypoints.http.dependencies import Server, ServerDep, check_seen
from orchestrator.services.rounds import LATE_S

LOOK_EVERY_S = 0.5
KNOWN_EVERY_S = 15.0
"""How often an open stream checks that its login is still valid."""

router = APIRouter(include_in_schema=False)
_log = structlog.get_logger(__name__)


_Key = tuple[str, bool]
"""A job's id, and whether its viewers may change it. Their pages differ."""


@dataclass
class _Watched:
    """A watched job: its newest sections, and the points read since then."""

    version: Any = None
    turn: int = 0
    gone: bool = False
    sections: dict[str, str] = field(default_factory=dict[str, str])
    sessions: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    began: float = 0.0
    points: dict[Cursor, dict[str, Any]] = field(default_factory=dict[Cursor, dict[str, Any]])
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    viewers: int = 0


class Hub:
    """Polls all watched jobs twice a second, renders each changed job once, and notifies its viewers.

    One thread does this, so a worker's report waits for at most one rendering, regardless of the number of viewers.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._watched: dict[_Key, _Watched] = {}
        self._looking: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="live")
        self._is_closed = False

    def close(self) -> None:
        """End all streams: the server stops. Browsers connect again. Call it on the event loop."""
        self._is_closed = True
        for job in self._watched.values():
            job.changed.set()

    async def follow(self, job_id: str, cursor: Cursor, *, is_own: bool) -> AsyncIterator[ServerSentEvent]:
        """Yield updates for one viewer until it disconnects. Only for `is_own` they have the actions on the job."""
        key = (job_id, is_own)
        job = self._watched.setdefault(key, _Watched())
        job.viewers += 1
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        sent: dict[str, str] = {}
        seen = 0
        try:
            while not self._is_closed:
                if job.turn == seen:
                    await job.changed.wait()
                    continue
                seen = job.turn
                if job.gone:
                    yield ServerSentEvent(raw_data="gone", event="gone")
                    return
                fresh = {n: text for n, text in job.sections.items() if sent.get(n) != text}
                sent |= fresh
                points = await self._points(job_id, job, cursor)
                cursor = curve.cursor_of(points["cursor"])
                if points["series"] is None:
                    yield ServerSentEvent(raw_data="again", event="reload", id=points["cursor"])
                elif points["series"]:
                    yield ServerSentEvent(raw_data=points["text"], event="points", id=points["cursor"])
                if fresh:
                    yield ServerSentEvent(raw_data=_partials(fresh), id=curve.cursor_text(cursor))
        finally:
            job.viewers -= 1
            if not job.viewers and self._watched.get(key) is job:
                del self._watched[key]

    async def _aside(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def _look(self) -> None:
        rounds = self._server.app.rounds
        rounds.expect("live", LOOK_EVERY_S + LATE_S)
        try:
            while self._watched:
                try:
                    await self._look_once()
                except Exception as error:  # noqa: BLE001  open pages would wait for ever
                    _log.warning("could not read the watched jobs", error=type(error).__name__)
                rounds.ended("live")
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            rounds.forget("live")

    async def _look_once(self) -> None:
        jobs = dict(self._watched)
        versions = await self._aside(self._server.dashboard_queries.pulses, list({job_id for job_id, _ in jobs}))
        for key, job in jobs.items():
            version = versions.get(key[0])
            if key[0] in versions and (version is None or version != job.version):
                await self._refresh(key, job, version)

    async def _refresh(self, key: _Key, job: _Watched, version: Any) -> None:
        try:
            shown = await self._aside(self._shown, *key) if version is not None else None
        except Exception:  # noqa: BLE001  logged, because a page that fails must not end the others
            _log.exception("could not render a watched job", job=key[0])
            return
        if shown is None:
            job.gone = True
        else:
            job.sections, job.sessions, job.began = shown
            job.points, job.version = {}, version
        job.turn += 1
        job.changed.set()
        job.changed = asyncio.Event()

    def _shown(self, job_id: str, is_own: bool) -> tuple[dict[str, str], list[dict[str, Any]], float] | None:
        view = look(self._server, job_id, is_own=is_own)
        return None if view is None else (view.sections(), view.values["sessions"], view.row["created_at"])

    async def _points(self, job_id: str, job: _Watched, cursor: Cursor) -> dict[str, Any]:
        """New points as JSON. The result is cached for viewers with the same cursor."""
        if cursor not in job.points:
            job.points[cursor] = await self._aside(self._read_points, job_id, job, cursor)
        return job.points[cursor]

    def _read_points(self, job_id: str, job: _Watched, cursor: Cursor) -> dict[str, Any]:
        known = curve.position(self._server, job_id, cursor)
        values = curve.since(self._server, job_id, job.sessions, cursor)
        if values is None:
            return {"series": None, "cursor": curve.cursor_text(known)}
        series = {name: curve.columns(rows, job.began) for name, rows in values.items()}
        body = {"cursor": curve.cursor_text(known), "sessions": curve.describe(job.sessions), "series": series}
        return body | {"text": json.dumps(body, separators=(",", ":"))}


def _partials(sections: dict[str, str]) -> str:
    return "\n".join(
        f'<hx-partial hx-target="#{name}" hx-swap="innerMorph">{text}</hx-partial>' for name, text in sections.items()
    )


@router.get("/jobs/{job_id}/live", response_class=EventSourceResponse)
async def live(
    request: Request,
    server: ServerDep,
    me: Viewer,
    job_id: ViewedJob,
    at: Annotated[str, Query(alias="from", max_length=40)] = "",
    last: Annotated[str | None, Header(alias="Last-Event-ID", max_length=40)] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Stream the job's changes after `Last-Event-ID` or `from`."""
    loop = asyncio.get_running_loop()
    known_until = loop.time() + KNOWN_EVERY_S
    is_own = await to_thread.run_sync(check_seen, server, me, job_id)
    async for event in request.app.state.live.follow(job_id, curve.cursor_of(last or at), is_own=is_own):
        if loop.time() > known_until:
            if not await is_unchanged(request, me):
                yield ServerSentEvent(raw_data="log in again", event="login")
                return
            known_until = loop.time() + KNOWN_EVERY_S
        yield event
