"""HTTP endpoints for evaluations of jobs."""

from __future__ import annotations

from fastapi import APIRouter, Response

from orchestrator.entrypoints.api import evaluation_responses, requests, responses
from orchestrator.entrypoints.api.jobs import Key, created
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, JobId, ServerDep
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute
from orchestrator.services import evaluations
from worker.shared.evaluation_spec import EvaluationSpec

router = APIRouter(prefix=PREFIX, tags=["jobs"], route_class=ApiRoute, responses=PROBLEMS)


@router.post(
    "/jobs/{job_id}:evaluate",
    status_code=201,
    operation_id="evaluate_job",
    summary="Evaluate a job",
    response_model=responses.SubmittedJob,
)
def evaluate(
    server: ServerDep, me: CurrentUser, job_id: JobId, asked: requests.EvaluationCreate, key: Key = None
) -> Response:
    """Queue a job that answers prompts with the base model and with the adapter of this job.

    It is a job like any other: it waits for a machine, saves its answers, and resumes on another machine.
    """
    settings = EvaluationSpec.model_validate(asked.model_dump(exclude={"checkpoint", "accept_findings"}))
    submission = evaluations.evaluate(
        server.ctx,
        me,
        job_id,
        settings,
        checkpoint=asked.checkpoint,
        accept_findings=asked.accept_findings,
        key=key,
    )
    return created(server, submission.job.id, submission.notes)


@router.get("/jobs/{job_id}/evaluations", operation_id="list_evaluations", summary="List the evaluations of a job")
def listing(server: ServerDep, me: CurrentUser, job_id: JobId) -> responses.Items[evaluation_responses.Evaluation]:
    """Its evaluations with their reports, newest first. Of an evaluation's own job, that evaluation."""
    found = evaluations.evaluations_of(server.ctx, me, job_id)
    audits = evaluations.audits_of(server.ctx, [job for _, job in found])
    items = [
        vars(each) | {"id": job.id, "job": each.trained_job, "state": job.state, "audits": audits[job.id]}
        for each, job in found
    ]
    return responses.Items[evaluation_responses.Evaluation].model_validate({"items": items})
