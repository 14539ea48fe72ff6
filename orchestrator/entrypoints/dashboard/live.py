"""One stream for each open page of a job: sections as HTML, points as JSON. Whoever watches the same job shares the work.

An event's id is the cursor of the newest point, so that a browser which comes back goes on where it was. Sections are sent
when they differ from what this stream has sent before.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Header, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.entrypoints.dashboard import curve
from orchestrator.entrypoints.dashboard.curve import Cursor, ViewedJob
from orchestrator.entrypoints.dashboard.job_view import Machines, look
from orchestrator.entrypoints.http.auth import is_still_known
from orchestrator.entrypoints.http.dependencies import Server

LOOK_EVERY_S = 0.5
KNOWN_EVERY_S = 15.0
"""How often an open stream asks whether its login still counts."""

router = APIRouter(include_in_schema=False)
_log = structlog.get_logger(__name__)


@dataclass
class _Watched:
    """A job that somebody watches: its newest sections, and the points asked for since then."""

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
    """Looks at all watched jobs twice a second, renders each once when it has changed, and tells everybody.

    All of it happens in one thread: however many watch, a machine's report waits for one rendering at most.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self.machines = Machines(server)
        self._watched: dict[str, _Watched] = {}
        self._looking: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="live")

    async def follow(self, job_id: str, cursor: Cursor) -> AsyncIterator[ServerSentEvent]:
        """What is new for one viewer, for as long as it listens."""
        job = self._watched.setdefault(job_id, _Watched())
        job.viewers += 1
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        sent: dict[str, str] = {}
        seen = 0
        try:
            while True:
                if job.turn == seen:
                    await job.changed.wait()
                    continue
                seen = job.turn
                if job.gone:
                    yield ServerSentEvent(raw_data="gone", event="gone")
                    return
                fresh = {n: text for n, text in job.sections.items() if sent.get(n) != text}
                sent |= fresh
                found = await self._points(job_id, job, cursor)
                cursor = curve.cursor_of(found["cursor"])
                if found["series"] is None:
                    yield ServerSentEvent(raw_data="again", event="reload", id=found["cursor"])
                elif found["series"]:
                    yield ServerSentEvent(raw_data=found["text"], event="points", id=found["cursor"])
                if fresh:
                    yield ServerSentEvent(raw_data=_partials(fresh), id=curve.cursor_text(cursor))
        finally:
            job.viewers -= 1
            if not job.viewers and self._watched.get(job_id) is job:
                del self._watched[job_id]

    async def _aside(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def _look(self) -> None:
        while self._watched:
            jobs = dict(self._watched)
            try:
                versions = await self._aside(self._server.pages.pulses, list(jobs))
            except SQLAlchemyError as error:
                _log.warning("watched jobs could not be read", error=type(error).__name__)
                versions = {}
            for job_id, job in jobs.items():
                if job_id in versions and (versions[job_id] is None or versions[job_id] != job.version):
                    await self._refresh(job_id, job, versions[job_id])
            await asyncio.sleep(LOOK_EVERY_S)

    async def _refresh(self, job_id: str, job: _Watched, version: Any) -> None:
        try:
            found = await self._aside(self._shown, job_id) if version is not None else None
        except Exception:  # noqa: BLE001  logged; a page that cannot be shown must not end the others
            _log.exception("a watched job could not be shown", job=job_id)
            return
        if found is None:
            job.gone = True
        else:
            job.sections, job.sessions, job.began = found
            job.points, job.version = {}, version
        job.turn += 1
        job.changed.set()
        job.changed = asyncio.Event()

    def _shown(self, job_id: str) -> tuple[dict[str, str], list[dict[str, Any]], float] | None:
        found = look(self._server, self.machines, job_id)
        return None if found is None else (found.sections(), found.values["sessions"], found.row["created_at"])

    async def _points(self, job_id: str, job: _Watched, cursor: Cursor) -> dict[str, Any]:
        """New points in the words of the page; the same question is answered once for everybody who asks it."""
        if cursor not in job.points:
            job.points[cursor] = await self._aside(self._read_points, job_id, job, cursor)
        return job.points[cursor]

    def _read_points(self, job_id: str, job: _Watched, cursor: Cursor) -> dict[str, Any]:
        found = curve.since(self._server, job_id, job.sessions, cursor)
        if found is None:
            last = job.sessions[-1]
            return {"series": None, "cursor": curve.cursor_text((last["fence"], last["last_step"]))}
        known = curve.newest(found, cursor)
        series = {name: curve.columns(rows, job.began) for name, rows in found.items()}
        body = {"cursor": curve.cursor_text(known), "sessions": curve.describe(job.sessions), "series": series}
        return body | {"text": json.dumps(body, separators=(",", ":"))}


def _partials(sections: dict[str, str]) -> str:
    return "\n".join(
        f'<hx-partial hx-target="#{name}" hx-swap="innerMorph">{text}</hx-partial>' for name, text in sections.items()
    )


@router.get("/jobs/{job_id}/live", response_class=EventSourceResponse)
async def live(
    request: Request,
    job_id: ViewedJob,
    at: Annotated[str, Query(alias="from", max_length=40)] = "",
    last: Annotated[str | None, Header(alias="Last-Event-ID", max_length=40)] = None,
) -> AsyncIterator[ServerSentEvent]:
    """The job as it changes, from the point after `Last-Event-ID` or `from`."""
    loop = asyncio.get_running_loop()
    known_until = loop.time() + KNOWN_EVERY_S
    async for event in request.app.state.live.follow(job_id, curve.cursor_of(last or at)):
        if loop.time() > known_until:
            if not await is_still_known(request):
                yield ServerSentEvent(raw_data="log in again", event="login")
                return
            known_until = loop.time() + KNOWN_EVERY_S
        yield event
