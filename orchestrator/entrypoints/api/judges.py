"""HTTP endpoints for judge models: their addresses, and the judgements of evaluations."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from orchestrator.domain.accounts import Actor
from orchestrator.domain.judgements import JudgeEndpoint
from orchestrator.entrypoints.api import judge_responses, requests
from orchestrator.entrypoints.api.responses import Items
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, JobId, Server, ServerDep
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute
from orchestrator.services import judge_endpoints, judge_reports, judgements
from orchestrator.services.judge_reports import JudgeReport

router = APIRouter(prefix=PREFIX, tags=["judge models"], route_class=ApiRoute, responses=PROBLEMS)
EndpointId = Annotated[str, Path(max_length=100, description="The endpoint's id or name.")]
JudgementId = Annotated[str, Path(max_length=64, description="The judgement's id.")]


def _endpoint(found: JudgeEndpoint) -> judge_responses.JudgeEndpoint:
    return judge_responses.JudgeEndpoint.model_validate(vars(found) | {"has_key": found.has_key})


@router.get("/judge-endpoints", operation_id="list_judge_endpoints", summary="List judge endpoints")
def listing(server: ServerDep, me: CurrentUser) -> Items[judge_responses.JudgeEndpoint]:
    """Your own endpoints. Keys are not returned."""
    found = [_endpoint(each) for each in judge_endpoints.endpoints(server.ctx, me)]
    return Items[judge_responses.JudgeEndpoint](items=found)


@router.post("/judge-endpoints", status_code=201, operation_id="add_judge_endpoint", summary="Add a judge endpoint")
def add(server: ServerDep, me: CurrentUser, asked: requests.JudgeEndpointCreate) -> judge_responses.JudgeEndpoint:
    """It is tried with one short request, which has none of your data. The key is stored encrypted."""
    made = judge_endpoints.add(
        server.app.judging,
        me,
        name=asked.name,
        url=asked.url,
        model=asked.model,
        key=asked.key.get_secret_value(),
        consent=asked.consent,
    )
    return _endpoint(made)


@router.patch(
    "/judge-endpoints/{endpoint_id}", operation_id="change_judge_endpoint", summary="Replace a judge endpoint's key"
)
def change(
    server: ServerDep, me: CurrentUser, endpoint_id: EndpointId, asked: requests.JudgeEndpointUpdate
) -> judge_responses.JudgeEndpoint:
    """The new key is tried first."""
    key = asked.key.get_secret_value()
    return _endpoint(judge_endpoints.replace_key(server.app.judging, me, endpoint_id, key))


@router.post(
    "/judge-endpoints/{endpoint_id}:consent",
    operation_id="consent_judge_endpoint",
    summary="Consent to send answers to a judge endpoint",
)
def consent(server: ServerDep, me: CurrentUser, endpoint_id: EndpointId) -> judge_responses.JudgeEndpoint:
    """Prompts and answers of your evaluations may leave the server for this endpoint. Time and name are recorded."""
    return _endpoint(judge_endpoints.consent(server.ctx, me, endpoint_id))


@router.delete(
    "/judge-endpoints/{endpoint_id}",
    status_code=204,
    operation_id="remove_judge_endpoint",
    summary="Remove a judge endpoint",
)
def remove(server: ServerDep, me: CurrentUser, endpoint_id: EndpointId) -> None:
    """Deletes the key. Judgements that use the endpoint stop, and their results stay."""
    judge_endpoints.remove(server.ctx, me, endpoint_id)


@router.post(
    "/evaluations/{job_id}/judgements", status_code=201, operation_id="start_judgement", summary="Start a judgement"
)
def start(
    server: ServerDep, me: CurrentUser, job_id: JobId, asked: requests.JudgementCreate
) -> judge_responses.Judgement:
    """The judge model compares both answers to each prompt of your finished evaluation, in both orders."""
    made = judgements.start(server.ctx, me, job_id, asked.endpoint, asked.max_tokens)
    return _shown(server, me, made.id, job_id)


@router.get(
    "/evaluations/{job_id}/judgements", operation_id="list_judgements", summary="List an evaluation's judgements"
)
def of_evaluation(server: ServerDep, me: CurrentUser, job_id: JobId) -> Items[judge_responses.Judgement]:
    """Newest first."""
    found = judge_reports.reports(server.ctx, me, job_id)
    return Items[judge_responses.Judgement](items=[_judgement(each) for each in found])


@router.post("/judgements/{judgement_id}:pause", operation_id="pause_judgement", summary="Pause a judgement")
def pause(server: ServerDep, me: CurrentUser, judgement_id: JudgementId) -> judge_responses.Judgement:
    """Nothing more is sent. Stored verdicts stay."""
    found = judgements.pause(server.ctx, me, judgement_id)
    return _shown(server, me, found.id, found.job_id)


@router.post("/judgements/{judgement_id}:resume", operation_id="resume_judgement", summary="Resume a judgement")
def resume(
    server: ServerDep, me: CurrentUser, judgement_id: JudgementId, asked: requests.JudgementResume
) -> judge_responses.Judgement:
    """Continue where it stopped, with another budget if one is given. Stored verdicts are not requested again."""
    found = judgements.resume(server.ctx, me, judgement_id, asked.max_tokens)
    return _shown(server, me, found.id, found.job_id)


def _shown(server: Server, me: Actor, judgement_id: str, job_id: str) -> judge_responses.Judgement:
    return _judgement(judge_reports.report(server.ctx, me, judgement_id, job_id))


def _judgement(found: JudgeReport) -> judge_responses.Judgement:
    """A judgement as the API shows it."""
    judgement = found.judgement
    conduct = vars(found.conduct) | {"is_biased": found.conduct.is_biased, "is_usable": found.conduct.is_usable}
    people = vars(found.people) | {"is_shown": found.people.is_shown} if found.people is not None else None
    more = {
        "evaluation": judgement.job_id,
        "identical": len(judgement.identical),
        "requests": judgement.requests,
        "not_before": judgement.not_before or None,
        "conduct": conduct,
        "people": people,
        "warnings": found.warnings,
    }
    return judge_responses.Judgement.model_validate(vars(judgement) | vars(found) | more)
