"""The page of a session: its output with search and level, hardware readings, and why it ended."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response, StreamingResponse

from orchestrator.domain.errors import NotFoundError
from orchestrator.entrypoints.api.sessions import session_output
from orchestrator.entrypoints.dashboard.curve import ViewedJob
from orchestrator.entrypoints.dashboard.render import Viewer, page, piece
from orchestrator.entrypoints.http.dependencies import Server, ServerDep
from orchestrator.ports.providers import ProviderError

router = APIRouter(include_in_schema=False)

SHOWN_BYTES = 1 << 18
PIECE_BYTES = 1 << 20
COUNTED_BYTES = 16 << 20
"""How much of an output is read to count the lines before those that are shown."""
MAX_LINE = 4_000
"""Maximum characters shown per line. The raw output is complete."""

Level = Literal["all", "warning", "error"]
_ERROR = re.compile(r"(error|exception)\b|\b(traceback|fatal|killed|critical)\b|^\s+File \"", re.IGNORECASE)
_WARNING = re.compile(r"warn(ing)?\b|\bdeprecated\b", re.IGNORECASE)
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of output. `number` counts from 1, `at` is the byte offset in the output.

    `number` is 0 where the output before the page is too long to count its lines.
    """

    at: int
    number: int
    text: str
    level: str
    cut: int


def tail(server: Server, session: Row, most: int) -> str:
    """The last `most` bytes of a session's output."""
    try:
        text, following = session_output(server, session, _tail_offset(server, session, most), most)
    except (ProviderError, NotFoundError) as error:
        return f"(no output: {error})"
    return text if following else ""


def _tail_offset(server: Server, session: Row, most: int) -> int:
    return tail_offset(lambda at, limit: session_output(server, session, at, limit)[0], most)


def tail_offset(read: Callable[[int, int], str], most: int) -> int:
    """The offset of the last `most` bytes. Drivers only read forward, so the end is found by doubling and bisection.

    `read(at, limit)` returns the output from byte `at`.
    """
    low, high = 0, most
    while read(high, 8):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if read(middle, 8) else (low, middle)
    return max(0, high - most)


def lines(text: str, offset: int, *, first: int = 1, search: str = "", level: Level = "all") -> list[Line]:
    """The matching lines of a piece of output, each with its byte offset. `first` is the number of the first line."""
    found: list[Line] = []
    at = offset
    for number, raw in enumerate(text.split("\n"), first):
        begins, at = at, at + len(raw.encode("utf-8", "replace")) + 1
        kind = "error" if _ERROR.search(raw[:MAX_LINE]) else "warning" if _WARNING.search(raw[:MAX_LINE]) else "info"
        if (level == "error" and kind != "error") or (level == "warning" and kind == "info"):
            continue
        if search and search.lower() not in raw.lower():
            continue
        cut = max(0, len(raw) - MAX_LINE)
        found.append(
            Line(at=begins, number=number if first else 0, text=raw[:MAX_LINE].rstrip("\r"), level=kind, cut=cut)
        )
    if found and not found[-1].text:
        found.pop()
    return found


def _session(server: Server, job_id: str, session_id: str) -> tuple[int, Row, list[Row]]:
    sessions = server.queries.sessions(job_id=job_id)
    for number, session in enumerate(sessions, 1):
        if session["id"] == session_id:
            return number, session, sessions
    raise NotFoundError(f"Job {job_id} has no session {session_id}.")


def _first_number(server: Server, session: Row, start: int) -> int:
    """The number of the line at byte `start`, or 0 if that is too far into the output to count."""
    if start > COUNTED_BYTES:
        return 0
    at, found = 0, 1
    while at < start:
        piece, following = session_output(server, session, at, min(PIECE_BYTES, start - at))
        if following == at:
            return 0
        at, found = following, found + piece.count("\n")
    return found


Offset = Annotated[int, Query(ge=0, le=2**40)]
Search = Annotated[str, Query(max_length=200)]


@router.get("/jobs/{job_id}/sessions/{session_id}")
def session_page(
    request: Request,
    server: ServerDep,
    me: Viewer,
    job_id: ViewedJob,
    session_id: str,
    search: Search = "",
    level: Level = "all",
    at: Annotated[int | None, Query(ge=0, le=2**40)] = None,
) -> Response:
    """The session's page. Without `at` it shows the end of the output."""
    number, session, sessions = _session(server, job_id, session_id)
    owner = server.queries.job(job_id, server.ctx.clock.now())
    start = at if at is not None else _start(server, session)
    shown, following, problem = _output(server, session, start)
    first = 1 if problem else _first_number(server, session, start)
    return page(
        request,
        "session.html",
        me,
        job=owner,
        session=session,
        number=number,
        sessions=sessions,
        readings=(number, server.queries.readings(session_id, 1_000)),
        lines=lines(shown, start, first=first, search=search, level=level),
        next_number=first and first + shown.count("\n"),
        start=start,
        following=following,
        search=search,
        level=level,
        problem=problem,
    )


def _start(server: Server, session: Row) -> int:
    try:
        return _tail_offset(server, session, SHOWN_BYTES)
    except (ProviderError, NotFoundError):
        return 0


def _output(server: Server, session: Row, start: int) -> tuple[str, int, str]:
    try:
        return *session_output(server, session, start, SHOWN_BYTES), ""
    except (ProviderError, NotFoundError) as error:
        return "", start, str(error)


@router.get("/jobs/{job_id}/sessions/{session_id}/more")
def more(
    server: ServerDep,
    job_id: ViewedJob,
    session_id: str,
    at: Offset,
    number: Annotated[int, Query(ge=0, le=2**40)] = 0,
    search: Search = "",
    level: Level = "all",
) -> Response:
    """New lines since byte `at`, which begins line `number`, and the offset of the next request."""
    _, session, _ = _session(server, job_id, session_id)
    shown, following, _ = _output(server, session, at)
    whole, broken, rest = shown.rpartition("\n")
    if broken and session["ended_at"] is None:
        shown, following = whole + broken, following - len(rest.encode())
    elif session["ended_at"] is None:
        shown, following = "", at
    return piece(
        "log_lines.html",
        job_id=job_id,
        session=session,
        lines=lines(shown, at, first=number, search=search, level=level),
        next_number=number and number + shown.count("\n"),
        following=following,
        search=search,
        level=level,
    )


@router.get("/jobs/{job_id}/sessions/{session_id}/raw")
def raw(server: ServerDep, job_id: ViewedJob, session_id: str) -> Response:
    """The whole output as text."""
    _, session, _ = _session(server, job_id, session_id)
    name = f'attachment; filename="{session_id}.log"'
    return StreamingResponse(
        _pieces(server, session), media_type="text/plain; charset=utf-8", headers={"Content-Disposition": name}
    )


def _pieces(server: Server, session: Row) -> Iterator[str]:
    at = 0
    while True:
        text, following = session_output(server, session, at, PIECE_BYTES)
        if following == at:
            return
        yield text
        at = following
