"""Checks of machines over HTTP: does what a first job needs work there?"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path

from orchestrator.domain import diagnosis
from orchestrator.domain.model import Account
from orchestrator.entrypoints.api import check_responses as schemas
from orchestrator.entrypoints.api import notebook_cells
from orchestrator.entrypoints.http.dependencies import PROBLEMS, Admin, CurrentUser, PlainTextRoute, ServerDep
from orchestrator.services import colab_checks
from orchestrator.services import diagnosis as checks

router = APIRouter(route_class=PlainTextRoute, responses=PROBLEMS)
Id = Annotated[str, Path(max_length=100)]


@router.post(
    "/accounts/{account_id}:diagnose",
    status_code=202,
    tags=["accounts"],
    operation_id="diagnose_account",
    summary="Check an account's machines",
)
def diagnose(server: ServerDep, me: CurrentUser, account_id: Id, asked: schemas.CheckAsked) -> schemas.Diagnosis:
    """For its owner and admins. It takes minutes: ask for the diagnosis until nothing is `running`."""
    return _answer(checks.start(server.ctx, me, account_id, gpu=asked.gpu))


@router.get(
    "/accounts/{account_id}/diagnosis",
    tags=["accounts"],
    operation_id="get_diagnosis",
    summary="What checks of an account's machines found",
)
def read(server: ServerDep, me: CurrentUser, account_id: Id) -> schemas.Diagnosis:
    """For its owner and admins."""
    return _answer(checks.read(server.ctx, me, account_id))


@router.post(
    "/checks/colab", tags=["accounts"], operation_id="make_colab_check", summary="A cell that checks a Colab runtime"
)
def colab(server: ServerDep, me: CurrentUser) -> schemas.Cell:
    """For you to paste and run. It holds the worker and a token that signs its answer and opens nothing."""
    order = colab_checks.order(server.ctx, me)
    return schemas.Cell(cell=notebook_cells.source(order), reaches=bool(order["server"]))


@router.post(
    "/checks/colab:answer", tags=["accounts"], operation_id="answer_colab_check", summary="What such a cell has found"
)
def colab_answer(server: ServerDep, asked: schemas.AnswerAsked) -> schemas.Check:
    """Its signature is permission enough: the cell holds no other."""
    return schemas.Check.model_validate(colab_checks.take(server.ctx, asked.line))


@router.post(
    "/stores/{name}:try-upload",
    tags=["stores"],
    operation_id="try_upload",
    summary="Use an upload session without signing in",
)
def try_upload(server: ServerDep, _: Admin, name: Annotated[str, Path(max_length=32)]) -> schemas.Probe:
    """As machines do that hold no credential; what was sent is deleted."""
    return schemas.Probe.model_validate(checks.try_uploads(server.ctx, name))


def _answer(account: Account) -> schemas.Diagnosis:
    image = account.image
    made: list[dict[str, Any]] = [{"machine": m, **image[m]} for m in diagnosis.MACHINES if m in image]
    return schemas.Diagnosis.model_validate(
        {
            "account": account.id,
            "running": image.get("running"),
            "checks": made,
            "problem": image.get("problem", ""),
            "changed": diagnosis.changed(image, account.provider),
            "summary": diagnosis.summary(image, account.provider),
        }
    )
