"""Datasets over HTTP: the raw file is the request's body."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from orchestrator.entrypoints.api import responses
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, MemberName, OwnerFilter, ServerDep, Sha256
from orchestrator.entrypoints.http.uploads import spooled
from orchestrator.services import dataset_deletion, datasets
from worker.shared.messages import RowFormat

router = APIRouter(tags=["datasets"], responses=PROBLEMS)
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
        str | None, Query(max_length=64, pattern=r"^upload-[0-9a-z]+$", description="`next` of the page before.")
    ] = None,
) -> responses.Page[responses.Upload]:
    """Those that you brought; for an admin everybody's. There is more as long as `next` is set."""
    page = server.views.datasets(member_id=member_id, limit=limit, before=cursor)
    return responses.Page[responses.Upload].model_validate(page)


@router.post(
    "/datasets", status_code=201, operation_id="upload_dataset", summary="Upload a data file", openapi_extra=RAW_BODY
)
async def upload(
    server: ServerDep,
    me: CurrentUser,
    request: Request,
    name: Annotated[str, Query(min_length=1, max_length=255, description="The file's name; its ending counts.")],
    row_format: Annotated[RowFormat, Query(alias="type")] = RowFormat.AUTO,
) -> responses.Dataset:
    """Every row is checked. The same bytes again are the same dataset.

    A job's own `type` says how it reads them; without one they are read as at their first upload.
    """
    datasets.file_format(name)
    async with spooled(request, server.app.settings.folder) as path:
        found = await run_in_threadpool(datasets.add_dataset, server.ctx, me.member_id, path, name, row_format)
    return responses.Dataset.model_validate(found)


@router.get("/datasets/{sha256}", operation_id="get_dataset", summary="An uploaded file")
def one(server: ServerDep, _: CurrentUser, sha256: Sha256) -> responses.Dataset:
    """Known to whoever knows its hash, and so has had the file."""
    return responses.Dataset.model_validate(datasets.dataset_by_id(server.ctx, sha256))


@router.delete("/datasets/{sha256}", status_code=204, operation_id="delete_dataset", summary="Delete a data file")
def delete(server: ServerDep, me: CurrentUser, sha256: Sha256, member: MemberName = None) -> None:
    """Yours, or for an admin that of `member`. Refused while a job that has not ended needs it.

    Others who brought the same bytes keep them. A job that has ended can be retried or cloned once they are brought again.
    """
    dataset_deletion.delete_dataset(server.ctx, me, sha256, member)
