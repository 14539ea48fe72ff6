"""The list of data files, and the page on which people audit one."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse, Response

from orchestrator.domain.audits import StrataKind, percent
from orchestrator.domain.errors import NotFoundError
from orchestrator.domain.trust.audit_estimate import Label
from orchestrator.entrypoints.api.audits import Place
from orchestrator.entrypoints.api.exports import Format, export_file
from orchestrator.entrypoints.dashboard.render import Viewer, page
from orchestrator.entrypoints.http.dependencies import ServerDep, Sha256
from orchestrator.services import audit_export, audit_rating, audits, datasets
from orchestrator.services.audit_rating import MAX_NOTE, MAX_SOURCE
from orchestrator.services.audits import MAX_SEED, MAX_UNITS

router = APIRouter(include_in_schema=False)
FILES_PER_PAGE = 50


@router.get("/datasets")
def listing(
    request: Request,
    server: ServerDep,
    me: Viewer,
    cursor: Annotated[str | None, Query(max_length=64, pattern=r"^upload-[0-9a-z]+$")] = None,
) -> Response:
    """The viewer's data files, newest first, with the results of their audits."""
    found = server.queries.datasets(member_id=me.member_id, limit=FILES_PER_PAGE, before=cursor, rows_only=True)
    words = audits.words_of(server.ctx, {row["sha256"] for row in found.items})
    return page(request, "datasets.html", me, files=found.items, next=found.next, words=words)


@router.get("/datasets/{sha256}/audit")
def one(
    request: Request,
    server: ServerDep,
    me: Viewer,
    sha256: Sha256,
    row: Annotated[int | None, Query(ge=1, le=MAX_UNITS)] = None,
) -> Response:
    """The audit of a data file with one row to label: the next one, or the `row`-th of the sample."""
    try:
        found = audits.status(server.ctx, me, sha256)
    except NotFoundError:
        dataset = datasets.dataset_by_id(server.ctx, me, sha256)
        return page(request, "audit_start.html", me, dataset=dataset, kinds=list(StrataKind), max_seed=MAX_SEED)
    screen = None
    if found.has_data:
        if row is None:
            screen = audit_rating.next_screen(server.ctx, me, sha256)
        else:
            screen = audit_rating.screen(server.ctx, me, sha256, row - 1)
    (data,) = audits.of_data(server.ctx, me.member_id, [sha256])
    return page(
        request,
        "audit.html",
        me,
        name=data.name,
        found=found,
        screen=screen,
        labels=list(Label),
        percent=percent,
        max_source=MAX_SOURCE,
        max_note=MAX_NOTE,
    )


@router.post("/datasets/{sha256}/audit")
def start(
    server: ServerDep,
    me: Viewer,
    sha256: Sha256,
    strata: Annotated[StrataKind, Form()] = StrataKind.LENGTH,
    seed: Annotated[int | None, Form(ge=0, le=MAX_SEED)] = None,
    max_percent: Annotated[float | None, Form(ge=0.1, le=90)] = None,
) -> Response:
    """Draw the sample."""
    limit = None if max_percent is None else max_percent / 100
    audits.start(server.ctx, me, sha256, seed=seed, strata=strata, max_wrong=limit)
    return _to_next(sha256)


@router.post("/datasets/{sha256}/audit/rows/{place}")
def label(
    server: ServerDep,
    me: Viewer,
    sha256: Sha256,
    place: Place,
    unit: Annotated[str, Form(max_length=40)],
    label: Annotated[Label, Form()],
    source: Annotated[str, Form(max_length=MAX_SOURCE)] = "",
    note: Annotated[str, Form(max_length=2 * MAX_NOTE)] = "",
) -> Response:
    """Label a row, and go to the next one. A browser sends each line break of a note as two characters."""
    text = note.replace("\r\n", "\n")
    audit_rating.give(server.ctx, me, sha256, place, unit=unit, label=label, source=source, note=text)
    return _to_next(sha256)


@router.post("/datasets/{sha256}/audit/more")
def more(server: ServerDep, me: Viewer, sha256: Sha256) -> Response:
    """Draw more rows."""
    audits.draw_more(server.ctx, me, sha256)
    return _to_next(sha256)


@router.get("/datasets/{sha256}/audit/labels.{form}")
def export(server: ServerDep, me: Viewer, sha256: Sha256, form: Format) -> Response:
    """All labels as a file."""
    return export_file(
        audit_export.export(server.ctx, me, sha256), audit_export.ExportedLabel, form, name=f"audit-{sha256[:12]}"
    )


def _to_next(sha256: str) -> Response:
    return RedirectResponse(f"/datasets/{sha256}/audit", 303)
