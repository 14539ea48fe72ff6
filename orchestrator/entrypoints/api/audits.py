"""HTTP endpoints for audits of datasets."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Response

from orchestrator.entrypoints.api import audit_responses, requests
from orchestrator.entrypoints.api.exports import AS_FILE, FormatQuery, export_file
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, ServerDep, Sha256
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute
from orchestrator.services import audit_export, audit_rating, audits

router = APIRouter(prefix=PREFIX, tags=["datasets"], route_class=ApiRoute, responses=PROBLEMS)
Place = Annotated[int, Path(ge=0, lt=audits.MAX_UNITS, description="The row's place in the sample, from 0.")]


def _status(server: ServerDep, me: CurrentUser, sha256: str) -> audit_responses.Audit:
    """The audit so far as the API shows it."""
    found = audits.status(server.ctx, me, sha256)
    shown = {"strata_by": found.audit.strata_kind, "rows": found.audit.units, "can_draw": found.can_draw}
    return audit_responses.Audit.model_validate(vars(found.audit) | vars(found) | shown)


@router.post(
    "/datasets/{sha256}/audit", status_code=201, operation_id="start_audit", summary="Start the audit of a dataset"
)
def start(server: ServerDep, me: CurrentUser, sha256: Sha256, asked: requests.AuditCreate) -> audit_responses.Audit:
    """Draws a random sample of the dataset's answers. A dataset has one audit for all who uploaded it.

    Its seed is fixed from then on, its other settings from the first label on.
    """
    audits.start(server.ctx, me, sha256, seed=asked.seed, strata=asked.strata, max_wrong=asked.max_wrong)
    return _status(server, me, sha256)


@router.get("/datasets/{sha256}/audit", operation_id="get_audit", summary="Get the audit of a dataset")
def one(server: ServerDep, me: CurrentUser, sha256: Sha256) -> audit_responses.Audit:
    """The share of wrong rows so far. A dataset without an audit is "not audited", and the answer is 404."""
    return _status(server, me, sha256)


@router.get("/datasets/{sha256}/audit/next", operation_id="next_audit_row", summary="Get the next row to label")
def following(server: ServerDep, me: CurrentUser, sha256: Sha256) -> audit_responses.NextRow:
    """The next row in the order of the sample. Members who label at the same time get different rows."""
    found = audit_rating.next_screen(server.ctx, me, sha256)
    row = audit_responses.AuditRow.model_validate(found) if found is not None else None
    return audit_responses.NextRow(row=row)


@router.get("/datasets/{sha256}/audit/rows/{place}", operation_id="get_audit_row", summary="Get a row of the sample")
def row(server: ServerDep, me: CurrentUser, sha256: Sha256, place: Place) -> audit_responses.AuditRow:
    """A row with your own label, to change it."""
    return audit_responses.AuditRow.model_validate(audit_rating.screen(server.ctx, me, sha256, place))


@router.put("/datasets/{sha256}/audit/rows/{place}", operation_id="label_audit_row", summary="Label a row")
def label(
    server: ServerDep, me: CurrentUser, sha256: Sha256, place: Place, asked: requests.AuditLabel
) -> audit_responses.Audit:
    """A second label of yours replaces the first one. The response is the audit with the label."""
    audit_rating.give(
        server.ctx, me, sha256, place, unit=asked.unit, label=asked.label, source=asked.source, note=asked.note
    )
    return _status(server, me, sha256)


@router.post("/datasets/{sha256}/audit:more", operation_id="draw_audit_rows", summary="Draw more rows")
def more(server: ServerDep, me: CurrentUser, sha256: Sha256) -> audit_responses.Drawn:
    """Draws the next 400 rows of the order, up to 4,000. The sample so far stays its beginning."""
    return audit_responses.Drawn(drawn=audits.draw_more(server.ctx, me, sha256))


@router.get(
    "/datasets/{sha256}/audit/labels", operation_id="export_audit", summary="Export all labels", responses=AS_FILE
)
def labels(
    server: ServerDep,
    me: CurrentUser,
    sha256: Sha256,
    form: FormatQuery = "jsonl",
) -> Response:
    """One line for each label, without the texts of the rows."""
    return export_file(audit_export.export(server.ctx, me, sha256), audit_export.ExportedLabel, form)
