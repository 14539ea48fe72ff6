"""Jobs side by side: their results, and in which keys of their job files they differ.

Comparisons of the answers of two models, in which people vote, are in `comparisons`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BeforeValidator, Field

from orchestrator.domain.accounts import Actor
from orchestrator.domain.errors import InvalidError
from orchestrator.domain.lifecycle import JobState
from orchestrator.entrypoints.api import responses
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, Server, ServerDep, check_seen
from orchestrator.entrypoints.http.machine_hours import hours_of
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute
from orchestrator.services.job_differences import differences

router = APIRouter(prefix=PREFIX, tags=["jobs"], route_class=ApiRoute, responses=PROBLEMS)

MIN_JOBS, MAX_JOBS = 2, 8
METRICS = ("loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_s")
MEMORY = "memory"

JobIds = Annotated[
    list[Annotated[str, Field(max_length=64)]] | None,
    Query(alias="job", max_length=100, description="A job's id. Repeat it for 2 to 8 jobs."),
]


class LossValues(responses.ResponseModel):
    """A metric's value at its last step, and its lowest one. They are null if they are not finite numbers."""

    last: float | None
    lowest: float | None


class ComparedJob(responses.ResponseModel):
    """A job with its results. `metrics` are those of which it has values. A GPU's hours count for each GPU."""

    id: str
    name: str
    member: str
    state: Annotated[responses.StateWord, BeforeValidator(lambda state: JobState(state).word)]
    step: int
    total_steps: int
    loss: LossValues
    eval_loss: LossValues
    gpu_hours: float
    cpu_hours: float
    cost: str = Field(description="What is known of the cost of its machines. Empty before a session has begun.")
    machines: list[str]
    tags: list[str]
    note: str
    metrics: list[str]


class Difference(responses.ResponseModel):
    """A key of the job file with its value in each job, in their order. Null if the file does not have the key."""

    key: str
    values: list[Any]


class ComparedJobs(responses.ResponseModel):
    """Jobs side by side, in the order of the request. `metrics` are those that at least two have."""

    jobs: list[ComparedJob]
    differences: list[Difference]
    metrics: list[str]


def checked(server: Server, me: Actor, job_ids: Sequence[str] | None) -> list[str]:
    """The jobs to compare.

    Raises `InvalidError` for too few, too many and repeated ones, and `NotFoundError` for one that may not be seen.
    """
    asked = list(job_ids or ())
    if len(asked) < MIN_JOBS:
        raise InvalidError(f"Choose {MIN_JOBS} to {MAX_JOBS} jobs to compare.")
    if len(asked) > MAX_JOBS:
        raise InvalidError(f"At most {MAX_JOBS} jobs can be compared. These are {len(asked)}.")
    if twice := next((job_id for place, job_id in enumerate(asked) if job_id in asked[:place]), None):
        raise InvalidError(f"Job {twice} is there twice. Choose {MIN_JOBS} to {MAX_JOBS} different jobs.")
    for job_id in asked:
        check_seen(server, me, job_id)
    return asked


def compare(server: Server, job_ids: Sequence[str]) -> ComparedJobs:
    """The jobs side by side. They must exist. A job that was deleted meanwhile is left out."""
    now = server.ctx.clock.now()
    rows = [row for row in (server.queries.job(job_id, now) for job_id in job_ids) if row is not None]
    jobs = [_with_results(server, row) for row in rows]
    known = [name for name in (*METRICS, MEMORY) if sum(name in job.metrics for job in jobs) >= MIN_JOBS]
    differing = [Difference(key=key, values=values) for key, values in differences([row["spec"] for row in rows])]
    return ComparedJobs(jobs=jobs, differences=differing, metrics=known)


def _with_results(server: Server, row: dict[str, Any]) -> ComparedJob:
    queries, job_id = server.dashboard_queries, row["id"]
    sessions = [s for s in server.queries.sessions(job_id=job_id) if s["started_at"] is not None]
    hours = hours_of(server, sessions)
    metrics = [name for name in METRICS if queries.position(job_id, name) is not None]
    metrics += [MEMORY] if queries.memory_position(job_id) is not None else []
    places = [f"{s['account']} {(s['hardware'] or {}).get('name') or ''}".strip() for s in sessions]
    losses = {
        n: {"last": queries.newest(job_id, n), "lowest": queries.lowest(job_id, n)} for n in ("loss", "eval_loss")
    }
    more = {"gpu_hours": hours.gpu, "cpu_hours": hours.cpu, "cost": hours.cost}
    return ComparedJob.model_validate(
        row | more | losses | {"metrics": metrics, "machines": list(dict.fromkeys(places))}
    )


@router.get("/jobs:compare", operation_id="compare_jobs", summary="Compare jobs")
def compared(server: ServerDep, me: CurrentUser, jobs: JobIds = None) -> ComparedJobs:
    """2 to 8 jobs side by side: their results, and the keys in which their job files differ."""
    return compare(server, checked(server, me, jobs))
