"""Checks of machines over HTTP: does what a first job needs work there?"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path

from orchestrator.domain import diagnosis
from orchestrator.domain.model import Account
from orchestrator.entrypoints import check_schemas as schemas
from orchestrator.entrypoints.deps import PROBLEMS, Caller, Here, PlainTextRoute
from orchestrator.services import diagnosis as checks

router = APIRouter(route_class=PlainTextRoute, responses=PROBLEMS, tags=["accounts"])
Id = Annotated[str, Path(max_length=100)]


@router.post(
    "/accounts/{account_id}:diagnose",
    status_code=202,
    operation_id="diagnose_account",
    summary="Check an account's machines",
)
def diagnose(server: Here, me: Caller, account_id: Id, asked: schemas.CheckAsked) -> schemas.Diagnosis:
    """For its owner and admins. It takes minutes: ask for the diagnosis until nothing is `running`."""
    return _answer(checks.start(server.ctx, me, account_id, gpu=asked.gpu))


@router.get(
    "/accounts/{account_id}/diagnosis",
    operation_id="get_diagnosis",
    summary="What checks of an account's machines found",
)
def read(server: Here, me: Caller, account_id: Id) -> schemas.Diagnosis:
    """For its owner and admins."""
    return _answer(checks.read(server.ctx, me, account_id))


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
