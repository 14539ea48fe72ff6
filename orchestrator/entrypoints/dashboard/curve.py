"""A job's metrics as compact JSON, downsampled to a few thousand points per metric."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from orchestrator.adapters.database.dashboard_queries import Point
from orchestrator.entrypoints.dashboard.render import Viewer, compressed
from orchestrator.entrypoints.http.dependencies import JobId, Server, ServerDep, check_own, check_seen

router = APIRouter(include_in_schema=False)

CURVES = ("loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_s")
MEMORY = "memory"
"""Not a metric: the memory in hardware readings, in GiB."""
SECOND_AXIS = {
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_s": "tokens/s",
    MEMORY: "memory, GiB",
}
"""What the chart can show beside the loss, in words."""
MAX_POINTS = 5_000
LONG_S = 3_600.0
"""A curve of this length has its times in whole seconds."""
MAX_AT_ONCE = 4_000
"""Maximum number of new points in a stream event. With more, the page reloads the data."""

Cursor = tuple[int, int]
"""`(fence, step)` of the newest point that a client has."""


def seen_job(server: ServerDep, me: Viewer, job_id: JobId) -> str:
    """The id of a job that the viewer may see. Raises `NotFoundError` for other jobs."""
    check_seen(server, me, job_id)
    return job_id


def own_job(server: ServerDep, me: Viewer, job_id: JobId) -> str:
    """The id of a job that the viewer may change. Raises `ForbiddenError` for a colleague's."""
    check_own(server, me, job_id)
    return job_id


ViewedJob = Annotated[str, Depends(seen_job)]
OwnedJob = Annotated[str, Depends(own_job)]


@router.get("/jobs/{job_id}/curve.json")
def curve(
    request: Request,
    server: ServerDep,
    job_id: ViewedJob,
    names: Annotated[str, Query(max_length=200)] = "loss,eval_loss",
    points: Annotated[int, Query(ge=10, le=MAX_POINTS)] = 500,
) -> Response:
    """The columns of `packed` for each metric, and the sessions."""
    owner = server.queries.job(job_id, server.ctx.clock.now())
    assert owner is not None
    sessions = server.queries.sessions(job_id=job_id)
    wanted = [n for n in names.split(",") if n in (*CURVES, MEMORY)]
    began = owner["created_at"]
    known = position(server, job_id, (0, 0))
    read = server.dashboard_queries
    found = {name: read.memory(job_id) if name == MEMORY else read.curve(job_id, name) for name in wanted}
    body: dict[str, Any] = {
        "cursor": cursor_text(known),
        "began": began,
        "total": owner["total_steps"],
        "sessions": describe(sessions),
        "series": {name: packed(decimate(rows, points), began) for name, rows in found.items()},
        "whole": {name: len(rows) for name, rows in found.items()},
    }
    return compressed(request, json.dumps(body, separators=(",", ":")).encode(), "application/json")


def decimate(rows: Sequence[Point], most: int) -> Sequence[Point]:
    """At most `most` rows by step. Each bucket keeps its first, lowest, highest and last row to show spikes."""
    if len(rows) <= most:
        return rows
    values = np.fromiter((row[1] for row in rows), dtype=np.float64, count=len(rows))
    edges = np.linspace(0, len(rows), max(1, most // 4) + 1).astype(np.int64)
    kept: set[int] = set()
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        piece = values[begin:end]
        kept.update((begin, begin + int(piece.argmin()), begin + int(piece.argmax()), end - 1))
    return [rows[i] for i in sorted(kept)]


def columns(rows: Sequence[Point], began: float) -> list[list[float]]:
    """Rows as columns: steps, values, seconds since `began`, fences."""
    return [
        [r[0] for r in rows],
        [float(f"{r[1]:.5g}") for r in rows],
        [round(r[2] - began, 1) for r in rows],
        [r[3] for r in rows],
    ]


def packed(rows: Sequence[Point], began: float) -> list[list[float]]:
    """The columns of `columns` with steps and times as differences from the row before, which halves their size."""
    steps, values, times, fences = columns(rows, began)
    digits = 1 if not times or times[-1] - times[0] < LONG_S else 0
    spans = _differences([round(time, digits) for time in times])
    return [_differences(steps), values, [round(span, digits) for span in spans], fences]


def _differences(column: list[float]) -> list[float]:
    return [*column[:1], *(after - before for before, after in pairwise(column))]


def describe(sessions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The data of each session that the chart needs. `spent` is the GPU time of earlier sessions, in seconds."""
    spent = 0.0
    told: list[dict[str, Any]] = []
    for number, session in enumerate(sessions, 1):
        hardware = session["hardware"] or {}
        told.append(
            {
                "number": number,
                "fence": session["fence"],
                "first": session["first_step"],
                "last": session["last_step"],
                "began": session["started_at"],
                "spent": spent,
                "outcome": session["outcome"],
                "where": f"{session['account']} {hardware.get('name') or ''}".strip(),
            }
        )
        spent += session["seconds"] if session["started_at"] else 0.0
    return told


def position(server: Server, job_id: str, cursor: Cursor) -> Cursor:
    """Fence and step of the newest loss, or `cursor` if that is later.

    Read it before the points. Each metric is read on its own, so a report may arrive between two of them. Its points
    are then sent again, and not skipped.
    """
    return max(cursor, server.dashboard_queries.position(job_id, "loss") or cursor)


def cursor_text(cursor: Cursor) -> str:
    """Format a cursor as an event id."""
    return f"{cursor[0]}.{cursor[1]}"


def cursor_of(text: str | None) -> Cursor:
    """Parse an event id as a cursor. An invalid id means the beginning."""
    fence, _, step = (text or "").partition(".")
    return (int(fence[:12]), int(step[:12])) if fence.isdecimal() and step.isdecimal() else (0, 0)


def since(
    server: Server, job_id: str, sessions: Sequence[dict[str, Any]], cursor: Cursor
) -> dict[str, list[Point]] | None:
    """New points after `cursor`, including its own step. None if there are too many to stream.

    A session may repeat steps of an earlier one. Its points start at its first step and replace the earlier ones.
    """
    fence, step = cursor
    later = [s["first_step"] for s in sessions if s["fence"] > fence]
    found = server.dashboard_queries.curves_from(
        job_id, CURVES, step=min([step, *later]), fence=fence, most=MAX_AT_ONCE + 1
    )
    if any(len(rows) > MAX_AT_ONCE for rows in found.values()):
        return None
    found[MEMORY] = server.dashboard_queries.memory(job_id, step=step, fence=fence)
    fresh = {n: [r for r in rows if r[3] > fence or r[0] >= step] for n, rows in found.items()}
    return {n: rows for n, rows in fresh.items() if rows}
