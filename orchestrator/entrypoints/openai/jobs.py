"""HTTP endpoints for fine-tuning jobs in the form of OpenAI's API."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from orchestrator.domain.errors import NotFoundError
from orchestrator.entrypoints.api.jobs import Key
from orchestrator.entrypoints.http.dependencies import CurrentUser, SeenJob, Server, ServerDep
from orchestrator.entrypoints.http.routes import ApiRoute
from orchestrator.entrypoints.openai import job_view
from orchestrator.entrypoints.openai.answers import FineTuningCheckpoint, FineTuningEvent, FineTuningJob, ListPage
from orchestrator.entrypoints.openai.documented import ERRORS
from orchestrator.entrypoints.openai.errors import PREFIX
from orchestrator.entrypoints.openai.requests import CheckpointQuery, FineTuningJobCreate, ListQuery
from orchestrator.entrypoints.openai.translation import in_their_words, job_file, note_of
from orchestrator.services import jobs

router = APIRouter(prefix=f"{PREFIX}/fine_tuning", tags=["OpenAI"], route_class=ApiRoute, responses=ERRORS)
_JOB, _CHECKPOINT = re.compile(r"job-[0-9a-z]+"), re.compile(r"[0-9a-f]{64}")


def _training_job(server: ServerDep, job_id: SeenJob) -> str:
    """The id of a job that the member may see and that trains."""
    _shown(server, job_id)
    return job_id


TrainingJob = Annotated[str, Depends(_training_job)]


def _shown(server: Server, job_id: str) -> FineTuningJob:
    now = server.ctx.clock.now()
    row, facts = server.queries.job(job_id, now), server.openai_queries.facts([job_id]).get(job_id)
    if row is None or facts is None or not job_view.trains(facts["spec"]):
        raise NotFoundError(f"There is no fine-tuning job {job_id}.")
    return job_view.job(row, facts, now)


@router.post("/jobs", operation_id="openai_create_job", summary="Create a fine-tuning job")
def create(server: ServerDep, me: CurrentUser, asked: FineTuningJobCreate, key: Key = None) -> FineTuningJob:
    """Queue a job. What has no counterpart is refused by its name. Files are validated before the answer."""
    with in_their_words():
        note = note_of(asked.metadata)
        found = jobs.submit(
            server.ctx, me, job_file(asked), key=key, note=note, write=server.write_batcher.write_from_thread
        )
    return _shown(server, found.job.id)


@router.get("/jobs", operation_id="openai_list_jobs", summary="List fine-tuning jobs, newest first")
def listing(server: ServerDep, me: CurrentUser, asked: Annotated[ListQuery, Query()]) -> ListPage[FineTuningJob]:
    """Your own jobs, or those of all members where the team shares them."""
    if asked.after is not None and not _JOB.fullmatch(asked.after):
        raise NotFoundError(f"There is no job {asked.after}.")
    now = server.ctx.clock.now()
    page = server.queries.jobs(now=now, limit=asked.limit, before=asked.after, member_id=me.jobs_seen, trains=True)
    facts = server.openai_queries.facts([row["id"] for row in page.items])
    shown = [job_view.job(row, facts[row["id"]], now) for row in page.items if row["id"] in facts]
    return ListPage[FineTuningJob].of(shown, has_more=page.next is not None)


@router.get("/jobs/{job_id}", operation_id="openai_get_job", summary="Get a fine-tuning job")
def one(server: ServerDep, job_id: SeenJob) -> FineTuningJob:
    """The job, also one that was submitted in another way."""
    return _shown(server, job_id)


@router.post("/jobs/{job_id}/cancel", operation_id="openai_cancel_job", summary="Cancel a fine-tuning job")
def cancel(server: ServerDep, me: CurrentUser, job_id: TrainingJob) -> FineTuningJob:
    """The job ends. Its last checkpoint is kept."""
    return _shown(server, jobs.cancel(server.ctx, me, job_id).id)


@router.post("/jobs/{job_id}/pause", operation_id="openai_pause_job", summary="Pause a fine-tuning job")
def pause(server: ServerDep, me: CurrentUser, job_id: TrainingJob) -> FineTuningJob:
    """A running job saves a checkpoint after the current step, and is `running` until then."""
    return _shown(server, jobs.pause(server.ctx, me, job_id).id)


@router.post("/jobs/{job_id}/resume", operation_id="openai_resume_job", summary="Resume a paused fine-tuning job")
def resume(server: ServerDep, me: CurrentUser, job_id: TrainingJob) -> FineTuningJob:
    """The job is queued and resumes from its last checkpoint."""
    return _shown(server, jobs.resume(server.ctx, me, job_id).id)


@router.get("/jobs/{job_id}/events", operation_id="openai_list_events", summary="List the events of a fine-tuning job")
def events(server: ServerDep, job_id: TrainingJob, asked: Annotated[ListQuery, Query()]) -> ListPage[FineTuningEvent]:
    """Newest first."""
    before = None if asked.after is None else job_view.event_number(asked.after)
    rows, more = server.openai_queries.events(job_id, before=before, limit=asked.limit)
    return ListPage[FineTuningEvent].of([job_view.event(row) for row in rows], has_more=more)


@router.get(
    "/jobs/{job_id}/checkpoints",
    operation_id="openai_list_checkpoints",
    summary="List the checkpoints of a fine-tuning job",
)
def checkpoints(
    server: ServerDep, job_id: TrainingJob, asked: Annotated[CheckpointQuery, Query()]
) -> ListPage[FineTuningCheckpoint]:
    """Those that are kept, newest first. A job file says how many are (`checkpoint.keep`)."""
    if asked.after is not None and not _CHECKPOINT.fullmatch(asked.after):
        raise NotFoundError(f"There is no checkpoint {asked.after}.")
    rows, more = server.openai_queries.checkpoints(job_id, after=asked.after, limit=asked.limit)
    losses: dict[int, Any] = server.openai_queries.losses(job_id, [row["step"] for row in rows])
    shown = [job_view.checkpoint(job_id, row, losses[row["step"]]) for row in rows]
    return ListPage[FineTuningCheckpoint].of(shown, has_more=more)
