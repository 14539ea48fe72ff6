"""A job's curves as compact JSON: at most some thousand points of each, whatever the job has reported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import Response

from orchestrator.adapters.database.dashboard_queries import Point
from orchestrator.domain.errors import NotFoundError
from orchestrator.entrypoints.dashboard.render import Viewer, compressed
from orchestrator.entrypoints.http.dependencies import Server, ServerDep

router = APIRouter(include_in_schema=False)

CURVES = ("loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_s")
MAX_POINTS = 5_000
MAX_AT_ONCE = 4_000
"""New points beyond which a stream says 'load the curve again' instead of sending them."""

Cursor = tuple[int, int]
"""`(fence, step)` of the newest point that a reader has."""


def my_job(server: ServerDep, me: Viewer, job_id: Annotated[str, Path(max_length=64)]) -> str:
    """The id of a job that the viewer may see; to others it does not exist."""
    owner = server.views.owner(job_id)
    if owner is None or not me.may_see(owner):
        raise NotFoundError(f"there is no job {job_id}")
    return job_id


ViewedJob = Annotated[str, Depends(my_job)]


@router.get("/jobs/{job_id}/curve.json")
def curve(
    request: Request,
    server: ServerDep,
    job_id: ViewedJob,
    names: Annotated[str, Query(max_length=200)] = "loss,eval_loss",
    points: Annotated[int, Query(ge=10, le=MAX_POINTS)] = 1_500,
) -> Response:
    """Columns step, value, seconds since the job was submitted and fence for each name, and who ran when."""
    owner = server.views.job(job_id, server.ctx.clock.now())
    assert owner is not None
    sessions = server.views.sessions(job_id=job_id)
    wanted = [n for n in names.split(",") if n in CURVES]
    began = owner["created_at"]
    found = {name: server.pages.curve(job_id, name) for name in wanted}
    body: dict[str, Any] = {
        "cursor": cursor_text(newest(found, (0, 0))),
        "began": began,
        "total": owner["total_steps"],
        "sessions": describe(sessions),
        "series": {name: columns(decimate(rows, points), began) for name, rows in found.items()},
        "whole": {name: len(rows) for name, rows in found.items()},
    }
    return compressed(request, json.dumps(body, separators=(",", ":")).encode(), "application/json")


def decimate(rows: Sequence[Point], most: int) -> Sequence[Point]:
    """At most `most` of the rows by step: of each bucket its first, lowest, highest and last, so that no spike is lost."""
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
    """Rows turned on their side: steps, values, seconds since `began`, fences."""
    return [
        [r[0] for r in rows],
        [float(f"{r[1]:.6g}") for r in rows],
        [round(r[2] - began, 1) for r in rows],
        [r[3] for r in rows],
    ]


def describe(sessions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a chart has to know of each session; GPU time is counted from the sessions before it."""
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


def newest(found: dict[str, list[Point]], cursor: Cursor) -> Cursor:
    """The newest of these points and of `cursor`."""
    return max([cursor, *((row[3], row[0]) for rows in found.values() for row in rows[-1:])])


def cursor_text(cursor: Cursor) -> str:
    """A cursor as an event's id."""
    return f"{cursor[0]}.{cursor[1]}"


def cursor_of(text: str | None) -> Cursor:
    """An event's id as a cursor; whatever is none counts as the beginning."""
    fence, _, step = (text or "").partition(".")
    return (int(fence[:12]), int(step[:12])) if fence.isdecimal() and step.isdecimal() else (0, 0)


def since(
    server: Server, job_id: str, sessions: Sequence[dict[str, Any]], cursor: Cursor
) -> dict[str, list[Point]] | None:
    """Points that are new after `cursor`, its own step once more; None if they are too many to send one by one.

    A session repeats steps of the one before it: its points begin at its own first step, and replace what was there.
    """
    fence, step = cursor
    later = [s["first_step"] for s in sessions if s["fence"] > fence]
    found = server.pages.curves_from(job_id, CURVES, step=min([step, *later]), fence=fence, most=MAX_AT_ONCE + 1)
    if any(len(rows) > MAX_AT_ONCE for rows in found.values()):
        return None
    fresh = {n: [r for r in rows if r[3] > fence or r[0] >= step] for n, rows in found.items()}
    return {n: rows for n, rows in fresh.items() if rows}
