"""The page of an evaluation's judge models: their endpoints, their judgements, and what they advise."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from orchestrator.domain.accounts import Actor
from orchestrator.domain.choices import MAX_BUDGET
from orchestrator.domain.errors import ConflictError, InvalidError
from orchestrator.domain.judgements import JudgementState
from orchestrator.entrypoints.api.judges import EndpointId, JudgementId
from orchestrator.entrypoints.api.requests import JudgeKey, JudgeModel, JudgeUrl, Name
from orchestrator.entrypoints.dashboard.render import Viewer, page
from orchestrator.entrypoints.http.dependencies import JobId, Server, ServerDep
from orchestrator.services import judge_endpoints, judge_reports, judgements
from orchestrator.services.judgements import BUDGET

router = APIRouter(include_in_schema=False)
Budget = Annotated[int, Form(ge=1, le=MAX_BUDGET)]


@router.get("/evaluations/{job_id}/judge")
def of_evaluation(request: Request, server: ServerDep, me: Viewer, job_id: JobId) -> Response:
    """The judgements, newest first, with forms for the viewer's endpoints."""
    return _shown(request, server, me, job_id)


def _shown(
    request: Request, server: Server, me: Actor, job_id: str, problem: str = "", typed: dict[str, str] | None = None
) -> Response:
    """The page. With a problem, the form keeps what was `typed`."""
    found = judge_reports.reports(server.ctx, me, job_id)
    return page(
        request,
        "judge.html",
        me,
        status=422 if problem else 200,
        job_id=job_id,
        found=found,
        runs=any(each.judgement.state is JudgementState.RUNNING for each in found),
        endpoints=judge_endpoints.endpoints(server.ctx, me),
        budget=BUDGET,
        max_budget=MAX_BUDGET,
        problem=problem,
        typed=typed or {},
    )


@router.post("/evaluations/{job_id}/judge")
def start(
    server: ServerDep, me: Viewer, job_id: JobId, endpoint: Annotated[Name, Form()], max_tokens: Budget = BUDGET
) -> Response:
    """Start a judgement."""
    judgements.start(server.ctx, me, job_id, endpoint, max_tokens)
    return _to_page(job_id)


@router.post("/evaluations/{job_id}/judge/endpoints")
def add(
    request: Request,
    server: ServerDep,
    me: Viewer,
    job_id: JobId,
    name: Annotated[Name, Form()],
    url: Annotated[JudgeUrl, Form()],
    model: Annotated[JudgeModel, Form()],
    key: Annotated[JudgeKey | None, Form()] = None,
    consent: Annotated[bool, Form()] = False,
) -> Response:
    """Try an endpoint and add it. If that fails, the form keeps all but the key."""
    try:
        judge_endpoints.add(
            server.app.judging,
            me,
            name=name,
            url=url,
            model=model,
            key=key.get_secret_value() if key is not None else "",
            consent=consent,
        )
    except (InvalidError, ConflictError) as error:
        return _shown(request, server, me, job_id, str(error), {"name": name, "url": url, "model": model})
    return _to_page(job_id)


@router.post("/evaluations/{job_id}/judge/endpoints/{endpoint_id}/consent")
def consent(server: ServerDep, me: Viewer, job_id: JobId, endpoint_id: EndpointId) -> Response:
    """Agree that answers are sent to an endpoint."""
    judge_endpoints.consent(server.ctx, me, endpoint_id)
    return _to_page(job_id)


@router.post("/evaluations/{job_id}/judge/endpoints/{endpoint_id}/remove")
def remove(server: ServerDep, me: Viewer, job_id: JobId, endpoint_id: EndpointId) -> Response:
    """Remove an endpoint."""
    judge_endpoints.remove(server.ctx, me, endpoint_id)
    return _to_page(job_id)


@router.post("/judgements/{judgement_id}/pause")
def pause(server: ServerDep, me: Viewer, judgement_id: JudgementId) -> Response:
    """Pause a judgement."""
    return _to_page(judgements.pause(server.ctx, me, judgement_id).job_id)


@router.post("/judgements/{judgement_id}/resume")
def resume(server: ServerDep, me: Viewer, judgement_id: JudgementId, max_tokens: Budget) -> Response:
    """Resume a judgement with this budget."""
    return _to_page(judgements.resume(server.ctx, me, judgement_id, max_tokens).job_id)


def _to_page(job_id: str) -> Response:
    return RedirectResponse(f"/evaluations/{job_id}/judge", 303)
