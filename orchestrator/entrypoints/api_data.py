"""Datasets over HTTP: the raw file is the request's body."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from orchestrator.entrypoints import schemas
from orchestrator.entrypoints.deps import PROBLEMS, Caller, Here, Sha256
from orchestrator.entrypoints.uploads import spooled
from orchestrator.services import datasets
from worker.protocol import RowFormat

router = APIRouter(tags=["datasets"], responses=PROBLEMS)
RAW_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post(
    "/datasets", status_code=201, operation_id="upload_dataset", summary="Upload a data file", openapi_extra=RAW_BODY
)
async def upload(
    server: Here,
    me: Caller,
    request: Request,
    name: Annotated[str, Query(min_length=1, max_length=255, description="The file's name; its ending counts.")],
    row_format: Annotated[RowFormat, Query(alias="type")] = RowFormat.AUTO,
) -> schemas.Dataset:
    """Every row is checked. The same bytes again are the same dataset.

    A job's own `type` says how it reads them; without one they are read as at their first upload.
    """
    datasets.file_format(name)
    async with spooled(request, server.app.settings.folder) as path:
        found = await run_in_threadpool(datasets.add_dataset, server.ctx, me.member_id, path, name, row_format)
    return schemas.Dataset.model_validate(found)


@router.get("/datasets/{sha256}", operation_id="get_dataset", summary="An uploaded file")
def one(server: Here, _: Caller, sha256: Sha256) -> schemas.Dataset:
    """Known to whoever knows its hash, and so has had the file."""
    return schemas.Dataset.model_validate(datasets.dataset_by_id(server.ctx, sha256))
