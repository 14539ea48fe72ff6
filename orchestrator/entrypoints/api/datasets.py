"""HTTP endpoints for datasets. The raw file is the request body."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from orchestrator.domain.accounts import Actor
from orchestrator.domain.storage import Dataset
from orchestrator.entrypoints.api import responses
from orchestrator.entrypoints.api.data_reports import DataReport
from orchestrator.entrypoints.http.dependencies import (
    PROBLEMS,
    CurrentUser,
    MemberName,
    OwnerFilter,
    Server,
    ServerDep,
    Sha256,
)
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute
from orchestrator.entrypoints.http.uploads import spooled
from orchestrator.services import audits, data_checking, datasets, held_out_checking
from orchestrator.services.named_columns import named_columns
from worker.shared.dataset_spec import RowFormat

router = APIRouter(prefix=PREFIX, tags=["datasets"], route_class=ApiRoute, responses=PROBLEMS)
AsRead = Annotated[RowFormat, Query(alias="type", description="How the rows are read. The default is as uploaded.")]
Validation = Annotated[
    str | None,
    Query(pattern=r"^[0-9a-f]{64}$", description="The sha256 of your upload of validation rows to compare it with."),
]
Columns = Annotated[
    str,
    Query(max_length=4_000, description='Names of columns as in a job file, as JSON: `{"field_messages": "turns"}`.'),
]
RAW_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.get("/datasets", operation_id="list_datasets", summary="List data files, newest first")
def listing(
    server: ServerDep,
    member_id: OwnerFilter,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[
        str | None, Query(max_length=64, pattern=r"^upload-[0-9a-z]+$", description="`next` of the previous page.")
    ] = None,
) -> responses.Page[responses.Upload]:
    """Your own uploads, or all members' uploads for an admin. There are more pages while `next` is set."""
    page = server.queries.datasets(member_id=member_id, limit=limit, before=cursor)
    words = audits.words_of(server.ctx, {row["sha256"] for row in page.items})
    items = [responses.Upload.model_validate(row | {"audit": words[row["sha256"]]}) for row in page.items]
    return responses.Page[responses.Upload](items=items, next=page.next)


@router.post(
    "/datasets", status_code=201, operation_id="upload_dataset", summary="Upload a data file", openapi_extra=RAW_BODY
)
async def upload(
    server: ServerDep,
    me: CurrentUser,
    request: Request,
    name: Annotated[str, Query(min_length=1, max_length=255, description="The file's name with its extension.")],
    row_format: Annotated[RowFormat, Query(alias="type")] = RowFormat.AUTO,
    columns: Columns = "",
) -> responses.CheckedDataset:
    """Every row is validated. The same bytes again are the same dataset.

    A job's `type` sets the row format. Without it, the format of the first upload is used. A file that machines cannot
    read as it is (packed, UTF-16, other separators or names of columns) is kept as JSON lines, with their sha256.
    """
    datasets.file_format(name)
    mapping = named_columns(columns, row_format)
    async with spooled(request, server.app.settings.folder) as path:
        found = await run_in_threadpool(
            partial(datasets.bring, server.ctx, me.member_id, path, name, row_format, mapping=mapping)
        )
    if found.dataset.row_format != RowFormat.TASK:  # nothing is trained on tasks
        await run_in_threadpool(data_checking.begin, server.ctx, found.dataset)
    described = await run_in_threadpool(_described, server, found.dataset, found.unused_keys)
    return described.model_copy(update={"columns": mapping})


def _described(server: Server, dataset: Dataset, unused_keys: tuple[str, ...]) -> responses.CheckedDataset:
    plain = responses.Dataset.model_validate(dataset)
    audit = audits.words_of(server.ctx, [dataset.sha256])[dataset.sha256]
    return responses.CheckedDataset(**plain.model_dump(), unused_keys=list(unused_keys), audit=audit)


@router.get("/datasets/{sha256}", operation_id="get_dataset", summary="Get an uploaded file")
def one(server: ServerDep, me: CurrentUser, sha256: Sha256) -> responses.CheckedDataset:
    """Your own upload. No other member can see it, even with its hash."""
    found = datasets.dataset_by_id(server.ctx, me, sha256)
    return _described(server, found, datasets.keys_of(server.ctx, found))


@router.get("/datasets/{sha256}/checks", operation_id="get_data_checks", summary="Get the data checks of a file")
def checks(
    server: ServerDep,
    me: CurrentUser,
    sha256: Sha256,
    row_format: AsRead = RowFormat.AUTO,
    validation: Validation = None,
) -> DataReport:
    """What the data checks have found in your own upload. 503 with `Retry-After` while the file is being checked.

    With `validation`, it is compared with your upload of validation rows: leaks, cut groups of copies, a shift.
    The checks that need a tokenizer are part of a job's plan.
    """
    return _checked(server, me, sha256, row_format, validation, wait_s=0.0)


@router.post("/datasets/{sha256}:check", operation_id="check_dataset", summary="Check a file")
def check(
    server: ServerDep,
    me: CurrentUser,
    sha256: Sha256,
    row_format: AsRead = RowFormat.AUTO,
    validation: Validation = None,
) -> DataReport:
    """The same, but the answer waits for up to 30 seconds. A file that was checked before is not checked again."""
    wait_s = server.ctx.checks.submit_wait_s if server.ctx.checks else 0.0
    return _checked(server, me, sha256, row_format, validation, wait_s=wait_s)


def _checked(
    server: Server, me: Actor, sha256: str, row_format: RowFormat, validation: str | None, *, wait_s: float
) -> DataReport:
    found = data_checking.stored_report(server.ctx, me, sha256, row_format, wait_s=wait_s)
    if validation is not None:
        found = held_out_checking.with_validation(server.ctx, me, found, sha256, row_format, validation, wait_s=wait_s)
    return DataReport.model_validate(found)


@router.post(
    "/datasets/{sha256}:clean", status_code=201, operation_id="clean_dataset", summary="Make a clean copy of a file"
)
def clean(server: ServerDep, me: CurrentUser, sha256: Sha256) -> responses.CheckedDataset:
    """A new upload of yours without the rows that the data checks have found. `parent` is the original."""
    return _described(server, data_checking.clean_copy(server.ctx, me, sha256), ())


@router.delete("/datasets/{sha256}", status_code=204, operation_id="delete_dataset", summary="Delete a data file")
def delete(server: ServerDep, me: CurrentUser, sha256: Sha256, member: MemberName = None) -> None:
    """Your own file, or for an admin that of `member`. Refused while an unfinished job needs it.

    Other members' uploads of the same bytes stay. To retry or clone a job that used it, upload the file again.
    """
    datasets.delete_dataset(server.ctx, me, sha256, member)
