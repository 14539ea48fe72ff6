"""HTTP endpoints for checks: do a provider's machines have what a job needs?"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path

from orchestrator.domain import diagnosis
from orchestrator.domain.accounts import Account
from orchestrator.entrypoints.api import check_responses, notebook_cells
from orchestrator.entrypoints.http.dependencies import PROBLEMS, Admin, CurrentUser, ServerDep
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute
from orchestrator.services import cell_checks
from orchestrator.services import diagnosis as checks

router = APIRouter(prefix=PREFIX, route_class=ApiRoute, responses=PROBLEMS)
Id = Annotated[str, Path(max_length=100)]
ProviderName = Annotated[str, Path(max_length=32, pattern=r"^[\w.-]+$")]


@router.post(
    "/accounts/{account_id}:diagnose",
    status_code=202,
    tags=["accounts"],
    operation_id="diagnose_account",
    summary="Start a check of an account's machines",
)
def diagnose(
    server: ServerDep, me: CurrentUser, account_id: Id, request: check_responses.CheckCreate
) -> check_responses.Diagnosis:
    """For the owner and admins. A check takes minutes. Poll the diagnosis until `running` is null."""
    return _answer(checks.start(server.ctx, me, account_id, gpu=request.gpu))


@router.get(
    "/accounts/{account_id}/diagnosis",
    tags=["accounts"],
    operation_id="get_diagnosis",
    summary="Get the results of checks",
)
def read(server: ServerDep, me: CurrentUser, account_id: Id) -> check_responses.Diagnosis:
    """For the owner and admins."""
    return _answer(checks.read(server.ctx, me, account_id))


@router.post(
    "/checks/{provider}:answer",
    tags=["accounts"],
    operation_id="answer_cell_check",
    summary="Submit the result of a check's cell",
)
def answer(
    server: ServerDep, provider: ProviderName, request: check_responses.CheckOutputCreate
) -> check_responses.Check:
    """The signature of the line is the only permission. The cell has no other credential."""
    return check_responses.Check.model_validate(cell_checks.take(server.ctx, provider, request.line))


@router.post(
    "/checks/{provider}",
    tags=["accounts"],
    operation_id="make_cell_check",
    summary="Create a cell that checks a notebook's machine",
)
def cell(server: ServerDep, me: CurrentUser, provider: ProviderName) -> check_responses.Cell:
    """For you to paste and run. It has the worker and a token that can only sign its result."""
    order = cell_checks.order(server.ctx, me, provider)
    return check_responses.Cell(cell=notebook_cells.source(order), reaches=bool(order["server"]))


@router.post(
    "/stores/{name}:try-upload", tags=["stores"], operation_id="try_upload", summary="Test an upload without a sign-in"
)
def try_upload(server: ServerDep, _: Admin, name: Annotated[str, Path(max_length=32)]) -> check_responses.CheckProbe:
    """Uploads a file like a machine without credentials does, then deletes it."""
    return check_responses.CheckProbe.model_validate(checks.try_uploads(server.ctx, name))


def _answer(account: Account) -> check_responses.Diagnosis:
    image = account.image
    made: list[dict[str, Any]] = [{"machine": m, **image[m]} for m in diagnosis.MACHINES if m in image]
    return check_responses.Diagnosis.model_validate(
        {
            "account": account.id,
            "running": image.get("running"),
            "checks": made,
            "problem": image.get("problem", ""),
            "changed": diagnosis.changed(image, account.provider),
            "summary": diagnosis.summary(image, account.provider),
        }
    )
