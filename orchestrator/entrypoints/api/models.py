"""HTTP endpoints for models: candidates, promotion, rollback, verdicts, cards and provenance."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Response

from orchestrator.domain.errors import NotFoundError
from orchestrator.domain.models import Model, Move
from orchestrator.entrypoints.api import model_responses as responses
from orchestrator.entrypoints.api import requests
from orchestrator.entrypoints.api.responses import Items
from orchestrator.entrypoints.http.dependencies import (
    PROBLEMS,
    CurrentUser,
    JobId,
    MemberName,
    OwnerFilter,
    Server,
    ServerDep,
)
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute
from orchestrator.services import model_cards, models
from orchestrator.services.judge_reports import JudgeReport
from orchestrator.services.verdicts import Judged

router = APIRouter(prefix=PREFIX, tags=["models"], route_class=ApiRoute, responses=PROBLEMS)
ModelName = Annotated[str, Path(pattern=requests.MODEL_NAME, description="The model's name.")]
MARKDOWN: dict[int | str, dict[str, Any]] = {200: {"content": {"text/markdown": {"schema": {"type": "string"}}}}}


def owner(server: ServerDep, me: CurrentUser, member: MemberName = None) -> str:
    """The id of the member whose model is asked for: the caller, or for an admin any member."""
    if member is None:
        return me.member_id
    asked = server.queries.member_id(member)
    return asked if asked is not None and me.may_see(asked) else "nobody"


ModelOwner = Annotated[str, Depends(owner)]


@router.get("/models", operation_id="list_models", summary="List models")
def listing(server: ServerDep, member_id: OwnerFilter) -> Items[responses.Model]:
    """Your models by name. An admin gets those of all members."""
    found = models.listed(server.ctx, member_id)
    return Items[responses.Model](items=[_model(model, member, move) for model, member, move in found])


def _model(model: Model, member: str, last: Move | None) -> responses.Model:
    against = model.promoted is not None and last is not None and last.against_verdict
    return responses.Model.model_validate(vars(model) | {"member": member, "against_verdict": against})


@router.get("/models/{name}", operation_id="get_model", summary="Get a model")
def one(server: ServerDep, me: CurrentUser, name: ModelName, member_id: ModelOwner) -> responses.ModelInFull:
    """The model with the verdict on each candidate as of now, and its history."""
    return _in_full(models.look(server.ctx, me, member_id, name))


def _in_full(found: models.Look) -> responses.ModelInFull:
    last = found.moves[-1] if found.moves else None
    candidates = [
        {
            "job": entry.candidate.job_id,
            "name": entry.name,
            "adapter_sha256": entry.candidate.adapter_sha256,
            "added_at": entry.candidate.added_at,
            "promoted": entry.is_promoted,
            "verdict": as_verdict(entry.judged) if entry.judged is not None else None,
        }
        for entry in found.entries
    ]
    more = {"candidates": candidates, "history": found.moves, "rollback_to": found.rollback_to}
    return responses.ModelInFull.model_validate(vars(_model(found.model, found.member, last)) | more)


def as_verdict(judged: Judged) -> responses.Verdict:
    """A verdict as the API shows it."""
    evaluation = judged.evaluation
    found = {
        "votes": judged.evidence.votes,
        "judges": [_judge(found) for found in judged.judges.reports] if judged.judges is not None else [],
        "advice": judged.advice,
        "evaluation": evaluation.job_id if evaluation is not None else None,
        "report": evaluation.report if evaluation is not None else None,
    }
    return responses.Verdict.model_validate(vars(judged) | vars(judged.verdict) | found)


def _judge(found: JudgeReport) -> dict[str, Any]:
    words = {"conduct": found.conduct_in_words, "people": found.people_in_words, "warnings": found.warnings}
    return vars(found.judgement) | {"advice": found.advice} | words


@router.post(
    "/models/{name}/candidates", status_code=201, operation_id="add_candidate", summary="Add a candidate to a model"
)
def add(server: ServerDep, me: CurrentUser, name: ModelName, asked: requests.CandidateCreate) -> responses.ModelInFull:
    """Adds the adapter of a finished job. The model is created if it does not exist."""
    model = models.add(server.ctx, me, name, asked.job)
    return _in_full(models.look(server.ctx, me, model.member_id, name))


@router.post("/models/{name}:promote", operation_id="promote", summary="Promote a job's adapter")
def promote(server: ServerDep, me: CurrentUser, name: ModelName, asked: requests.Promotion) -> responses.ModelInFull:
    """Refused with the verdict's reasons (409) unless the verdict is "promote".

    The job becomes a candidate if it is not one yet. An admin can force the promotion. This is recorded and
    shown as "promoted against the verdict". If another move came first, the answer is 409 as well.
    """
    move = models.promote(server.ctx, me, name, asked.job, force=asked.force, after=asked.after)
    return _in_full(models.look(server.ctx, me, move.member_id, name))


@router.post("/models/{name}:rollback", operation_id="rollback", summary="Promote the candidate before")
def rollback(
    server: ServerDep, me: CurrentUser, name: ModelName, member_id: ModelOwner, asked: requests.Rollback
) -> responses.ModelInFull:
    """Undoes the last promotion. If nothing was promoted before, nothing is promoted afterwards."""
    models.rollback(server.ctx, me, member_id, name, after=asked.after)
    return _in_full(models.look(server.ctx, me, member_id, name))


@router.get("/models/{name}/card", operation_id="get_model_card", summary="Get the card of a model", responses=MARKDOWN)
def card(server: ServerDep, me: CurrentUser, name: ModelName, member_id: ModelOwner) -> Response:
    """The model card of the promoted candidate, as of now."""
    return job_card(server, me, _promoted(server, me, member_id, name))


@router.get("/models/{name}/provenance", operation_id="get_model_provenance", summary="Get the provenance of a model")
def provenance(server: ServerDep, me: CurrentUser, name: ModelName, member_id: ModelOwner) -> responses.Provenance:
    """What the promoted candidate was made of and what is known of it, as of now."""
    return job_provenance(server, me, _promoted(server, me, member_id, name))


def _promoted(server: Server, me: CurrentUser, member_id: str, name: str) -> str:
    found = models.find(server.ctx, me, member_id, name)
    if found.promoted is None:
        raise NotFoundError(f"Nothing is promoted in model {name}.")
    return found.promoted


@router.get("/jobs/{job_id}/verdict", operation_id="get_verdict", summary="Get the verdict on a job's adapter")
def verdict(server: ServerDep, me: CurrentUser, job_id: JobId) -> responses.Verdict:
    """Whether the adapter is better than its base, as far as that is known."""
    return as_verdict(models.verdict_of(server.ctx, me, job_id))


@router.get(
    "/jobs/{job_id}/card", operation_id="get_card", summary="Get the model card of an adapter", responses=MARKDOWN
)
def job_card(server: ServerDep, me: CurrentUser, job_id: JobId) -> Response:
    """The README of the PEFT folder with the evidence as of now. The adapter's own file does not change."""
    return Response(model_cards.card(server.ctx, me, job_id), media_type="text/markdown")


@router.get("/jobs/{job_id}/provenance", operation_id="get_provenance", summary="Get the provenance of an adapter")
def job_provenance(server: ServerDep, me: CurrentUser, job_id: JobId) -> responses.Provenance:
    """All hashes behind the adapter, its recipe, its evaluation and its verdict: `trainhop-provenance.json`."""
    return responses.Provenance.model_validate(model_cards.provenance(server.ctx, me, job_id))
