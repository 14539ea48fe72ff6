"""The page that shows jobs side by side, and their curves as JSON.

The page with the votes on two models' answers is in `comparisons`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from orchestrator.domain.lifecycle import JobState
from orchestrator.entrypoints.api.compared_jobs import MEMORY, JobIds, checked, compare
from orchestrator.entrypoints.cli.output import clean
from orchestrator.entrypoints.dashboard.render import Viewer, by_script, compressed, page, piece
from orchestrator.entrypoints.http.dependencies import Server, ServerDep

router = APIRouter(include_in_schema=False)

POINTS = 600
"""A curve has at most this many points. One of more steps has the means of that many equal ranges."""
WORDS = {
    "loss": "loss",
    "eval_loss": "eval loss",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_s": "tokens/s",
    MEMORY: "memory",
}
Metric = Literal["loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_s", "memory"]


@router.get("/compare")
def side_by_side(request: Request, server: ServerDep, me: Viewer, jobs: JobIds = None) -> Response:
    """The results of 2 to 8 jobs, the differences of their job files, and their curves over each other."""
    found = compare(server, checked(server, me, jobs))
    if by_script(request):
        return piece("compare_results.html", me=me, found=found)
    query = "&".join(f"job={job.id}" for job in found.jobs)
    named = json.dumps([{"id": job.id, "name": clean(job.name)} for job in found.jobs])
    is_live = any(not JobState.of(job.state).is_final for job in found.jobs)
    more = {"query": query, "named": named, "is_live": is_live, "words": WORDS, "in_words": in_words}
    return page(request, "compare.html", me, found=found, **more)


def in_words(value: Any) -> str:
    """A value of a job file as it is written there."""
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@router.get("/compare/curves.json")
def curves(
    request: Request, server: ServerDep, me: Viewer, metric: Annotated[Metric, Query()], jobs: JobIds = None
) -> Response:
    """One metric of the jobs over common steps. `values` has one list for each job, null where it has no value.

    `width` is the number of steps of which each point is the mean. `steps` are the middles of these ranges.
    """
    asked = checked(server, me, jobs)
    width = max(1, -(-(1 + max(_last_step(server, job_id, metric) for job_id in asked)) // POINTS))
    found = [dict(_means(server, job_id, metric, width)) for job_id in asked]
    ranges = sorted(set[int]().union(*found))
    body: dict[str, Any] = {
        "metric": metric,
        "width": width,
        "steps": [number * width + (width - 1) / 2 if width > 1 else number for number in ranges],
        "values": [_rounded([each.get(number) for number in ranges]) for each in found],
    }
    return compressed(request, json.dumps(body, separators=(",", ":")).encode(), "application/json")


def _last_step(server: Server, job_id: str, metric: str) -> int:
    if metric == MEMORY:
        return server.dashboard_queries.memory_position(job_id) or 0
    return (server.dashboard_queries.position(job_id, metric) or (0, 0))[1]


def _means(server: Server, job_id: str, metric: str, width: int) -> list[tuple[int, float]]:
    if metric == MEMORY:
        return server.dashboard_queries.memory_means(job_id, width)
    return server.dashboard_queries.means(job_id, metric, width)


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else float(f"{value:.6g}") for value in values]
