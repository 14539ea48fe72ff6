"""The page of an evaluation's blind comparison, for its owner. Before it is closed, the page shows only counts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse, Response

from orchestrator.domain.audits import percent
from orchestrator.domain.choices import GainKind
from orchestrator.domain.comparisons import PlanName
from orchestrator.domain.errors import NotFoundError
from orchestrator.entrypoints.api.comparisons import ComparisonId, RaterId, rater_link
from orchestrator.entrypoints.api.exports import Format, export_file
from orchestrator.entrypoints.api.requests import Name, Question
from orchestrator.entrypoints.dashboard.render import Viewer, page
from orchestrator.entrypoints.http.dependencies import JobId, ServerDep
from orchestrator.services import comparison_export, comparison_raters, comparisons
from orchestrator.services.comparisons import MAX_QUESTION, QUESTION

router = APIRouter(include_in_schema=False)


@router.get("/evaluations/{job_id}/comparisons")
def of_evaluation(
    request: Request,
    server: ServerDep,
    me: Viewer,
    job_id: JobId,
    comparison: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """The newest comparison, or an earlier one, with a form to start the first or another one."""
    return _shown(request, server, me, job_id, comparison)


def _shown(
    request: Request,
    server: ServerDep,
    me: Viewer,
    job_id: str,
    comparison_id: str | None,
    link: tuple[str, str] | None = None,
) -> Response:
    known = comparisons.of_evaluation(server.ctx, me, job_id)
    chosen = comparison_id or (known[0].id if known else None)
    if chosen is not None and chosen not in {each.id for each in known}:
        raise NotFoundError(f"This evaluation has no comparison {chosen}.")
    return page(
        request,
        "comparison.html",
        me,
        job_id=job_id,
        known=known,
        found=comparisons.status(server.ctx, me, chosen) if chosen is not None else None,
        link=link,
        percent=percent,
        plans=list(PlanName),
        question=QUESTION,
        max_question=MAX_QUESTION,
    )


@router.post("/evaluations/{job_id}/comparisons")
def start(
    server: ServerDep,
    me: Viewer,
    job_id: JobId,
    question: Annotated[Question, Form()] = QUESTION,
    plan: Annotated[PlanName, Form()] = PlanName.STANDARD,
    margin_percent: Annotated[float | None, Form(ge=1, le=30)] = None,
    gain: Annotated[GainKind | None, Form()] = None,
) -> Response:
    """Start a comparison."""
    margin = None if margin_percent is None else margin_percent / 100
    comparisons.start(server.ctx, me, job_id, question=question, plan=plan, margin=margin, gain=gain)
    return _to_page(job_id)


@router.post("/comparisons/{comparison_id}/close")
def close(server: ServerDep, me: Viewer, comparison_id: ComparisonId) -> Response:
    """Close a comparison."""
    return _to_page(comparisons.close(server.ctx, me, comparison_id).job_id)


@router.post("/comparisons/{comparison_id}/raters")
def add_rater(
    request: Request, server: ServerDep, me: Viewer, comparison_id: ComparisonId, name: Annotated[Name, Form()]
) -> Response:
    """Add a rater, and show their link once."""
    rater, secret = comparison_raters.add_rater(server.ctx, me, comparison_id, name)
    return _with_link(request, server, me, comparison_id, (rater.name, rater_link(server, secret)))


@router.post("/comparisons/{comparison_id}/raters/{rater_id}/link")
def renew(request: Request, server: ServerDep, me: Viewer, comparison_id: ComparisonId, rater_id: RaterId) -> Response:
    """Show a new link of a rater once."""
    rater, secret = comparison_raters.new_link(server.ctx, me, comparison_id, rater_id)
    return _with_link(request, server, me, comparison_id, (rater.name, rater_link(server, secret)))


def _with_link(request: Request, server: ServerDep, me: Viewer, comparison_id: str, link: tuple[str, str]) -> Response:
    job_id = comparisons.status(server.ctx, me, comparison_id).comparison.job_id
    return _shown(request, server, me, job_id, comparison_id, link)


@router.post("/comparisons/{comparison_id}/raters/{rater_id}/revoke")
def revoke(server: ServerDep, me: Viewer, comparison_id: ComparisonId, rater_id: RaterId) -> Response:
    """Revoke a rater's link."""
    comparison_raters.revoke(server.ctx, me, comparison_id, rater_id)
    return _to_page(comparisons.status(server.ctx, me, comparison_id).comparison.job_id)


@router.get("/comparisons/{comparison_id}/votes.{form}")
def export(server: ServerDep, me: Viewer, comparison_id: ComparisonId, form: Format) -> Response:
    """All votes of a closed comparison as a file."""
    return export_file(
        comparison_export.export(server.ctx, me, comparison_id),
        comparison_export.ExportedVote,
        form,
        name=f"votes-{comparison_id}",
    )


def _to_page(job_id: str) -> Response:
    return RedirectResponse(f"/evaluations/{job_id}/comparisons", 303)
