"""HTTP endpoints for the owner of a blind comparison. Raters have a page of their own."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response

from orchestrator.domain.accounts import Actor
from orchestrator.domain.blind_votes import Result
from orchestrator.entrypoints.api import comparison_responses, requests
from orchestrator.entrypoints.api.exports import AS_FILE, FormatQuery, export_file
from orchestrator.entrypoints.api.responses import Items
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, JobId, Server, ServerDep
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute
from orchestrator.services import comparison_export, comparison_raters, comparisons

router = APIRouter(prefix=PREFIX, tags=["comparisons"], route_class=ApiRoute, responses=PROBLEMS)
ComparisonId = Annotated[str, Path(max_length=64, description="The comparison's id.")]
RaterId = Annotated[str, Path(max_length=64, description="The rater's id.")]


def _shown(server: Server, me: Actor, comparison_id: str) -> comparison_responses.BlindComparison:
    """A comparison as the API shows it."""
    found = comparisons.status(server.ctx, me, comparison_id)
    comparison = found.comparison
    counts = {
        "evaluation": comparison.job_id,
        "identical": len(comparison.identical),
        "result": None if found.result is None else _result(found.result),
    }
    return comparison_responses.BlindComparison.model_validate(vars(comparison) | vars(found) | counts)


def _result(found: Result) -> dict[str, Any]:
    return vars(found) | vars(found.test) | {"agreement_too_low": found.agreement.is_too_low}


@router.post(
    "/evaluations/{job_id}/comparisons",
    status_code=201,
    operation_id="start_comparison",
    summary="Start a blind comparison",
)
def start(
    server: ServerDep, me: CurrentUser, job_id: JobId, asked: requests.ComparisonCreate
) -> comparison_responses.BlindComparison:
    """People will vote on both answers to each prompt of a finished evaluation. One comparison is open at a time."""
    made = comparisons.start(
        server.ctx, me, job_id, question=asked.question, plan=asked.plan, margin=asked.margin, gain=asked.gain
    )
    return _shown(server, me, made.id)


@router.get(
    "/evaluations/{job_id}/comparisons", operation_id="list_comparisons", summary="List an evaluation's comparisons"
)
def listing(server: ServerDep, me: CurrentUser, job_id: JobId) -> Items[comparison_responses.ComparisonOutline]:
    """Newest first."""
    found = comparisons.of_evaluation(server.ctx, me, job_id)
    return Items[comparison_responses.ComparisonOutline].model_validate({"items": found})


@router.get("/comparisons/{comparison_id}", operation_id="get_comparison", summary="Get a blind comparison")
def one(server: ServerDep, me: CurrentUser, comparison_id: ComparisonId) -> comparison_responses.BlindComparison:
    """Its counts and raters. The result is there after it was closed."""
    return _shown(server, me, comparison_id)


@router.patch("/comparisons/{comparison_id}", operation_id="change_comparison", summary="Change a blind comparison")
def change(
    server: ServerDep, me: CurrentUser, comparison_id: ComparisonId, asked: requests.ComparisonUpdate
) -> comparison_responses.BlindComparison:
    """Refused from the first vote on. Then close it and start another one."""
    comparisons.change(
        server.ctx, me, comparison_id, question=asked.question, plan=asked.plan, margin=asked.margin, gain=asked.gain
    )
    return _shown(server, me, comparison_id)


@router.post("/comparisons/{comparison_id}:close", operation_id="close_comparison", summary="Close a blind comparison")
def close(server: ServerDep, me: CurrentUser, comparison_id: ComparisonId) -> comparison_responses.BlindComparison:
    """It closes by itself when the votes decide. Closed earlier, its result is "not enough evidence"."""
    comparisons.close(server.ctx, me, comparison_id)
    return _shown(server, me, comparison_id)


@router.post("/comparisons/{comparison_id}/raters", status_code=201, operation_id="add_rater", summary="Add a rater")
def add_rater(
    server: ServerDep, me: CurrentUser, comparison_id: ComparisonId, asked: requests.RaterCreate
) -> comparison_responses.RaterLink:
    """The link in the answer is shown only once. It works without an account, in one browser."""
    rater, secret = comparison_raters.add_rater(server.ctx, me, comparison_id, asked.name)
    return comparison_responses.RaterLink(id=rater.id, name=rater.name, url=rater_link(server, secret))


@router.post(
    "/comparisons/{comparison_id}/raters/{rater_id}/link", operation_id="renew_rater_link", summary="Renew a link"
)
def renew(
    server: ServerDep, me: CurrentUser, comparison_id: ComparisonId, rater_id: RaterId
) -> comparison_responses.RaterLink:
    """A new link for the same rater, who keeps their votes. The old link and browser stop working."""
    rater, secret = comparison_raters.new_link(server.ctx, me, comparison_id, rater_id)
    return comparison_responses.RaterLink(id=rater.id, name=rater.name, url=rater_link(server, secret))


@router.delete(
    "/comparisons/{comparison_id}/raters/{rater_id}",
    status_code=204,
    operation_id="revoke_rater",
    summary="Revoke a rater's link",
)
def revoke(server: ServerDep, me: CurrentUser, comparison_id: ComparisonId, rater_id: RaterId) -> None:
    """The link and the browser that used it stop working at once. The rater's votes stay."""
    comparison_raters.revoke(server.ctx, me, comparison_id, rater_id)


@router.get(
    "/comparisons/{comparison_id}/votes", operation_id="export_votes", summary="Export all votes", responses=AS_FILE
)
def votes(
    server: ServerDep,
    me: CurrentUser,
    comparison_id: ComparisonId,
    form: FormatQuery = "jsonl",
) -> Response:
    """One line for each vote, without the texts. Refused until the comparison is closed."""
    return export_file(comparison_export.export(server.ctx, me, comparison_id), comparison_export.ExportedVote, form)


def rater_link(server: Server, secret: str) -> str:
    """The address that a rater opens."""
    return f"{(server.app.settings.public_url or server.ctx.server_url()).rstrip('/')}/rate/open/{secret}"
