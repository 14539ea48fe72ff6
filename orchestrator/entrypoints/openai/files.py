"""HTTP endpoints for files in the form of OpenAI's API: data files to train on, and results of jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from orchestrator.domain.accounts import Actor
from orchestrator.domain.errors import ForbiddenError, InvalidError, NotFoundError
from orchestrator.domain.storage import Dataset
from orchestrator.entrypoints.api import sessions
from orchestrator.entrypoints.http.dependencies import CurrentUser, Server, ServerDep, check_own, check_seen
from orchestrator.entrypoints.http.files import BINARY, BYTES, OCTETS, stored
from orchestrator.entrypoints.http.routes import ApiRoute
from orchestrator.entrypoints.http.uploads import copied
from orchestrator.entrypoints.openai.answers import DeletedFile, ListPage, StoredFile
from orchestrator.entrypoints.openai.documented import ERRORS
from orchestrator.entrypoints.openai.errors import PREFIX
from orchestrator.entrypoints.openai.file_ids import Result, result_of, sha256_of, upload_id
from orchestrator.entrypoints.openai.requests import FileQuery
from orchestrator.services import data_checking, datasets
from worker.shared.dataset_spec import RowFormat

router = APIRouter(prefix=f"{PREFIX}/files", tags=["OpenAI"], route_class=ApiRoute, responses=ERRORS)

PURPOSE = "fine-tune"
MOST = 1_000
KINDS = (OCTETS, "text/csv", "application/zip")
MAX_FIELDS, MAX_FIELD_BYTES = 16, 4 << 10
FileId = Annotated[str, Path(max_length=100, description="The file's id.")]
FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {"file": BYTES, "purpose": {"const": PURPOSE}},
                }
            }
        },
    }
}


@router.post("", operation_id="openai_upload_file", summary="Upload a file to train on", openapi_extra=FORM)
async def upload(server: ServerDep, me: CurrentUser, request: Request) -> StoredFile:
    """Every row is validated. The same bytes again are the same file."""
    async with request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES) as form:
        file = _file_of(form)
        dataset = await run_in_threadpool(_kept, server, me, file)
    return _of_dataset(dataset)


def _file_of(form: FormData) -> UploadFile:
    """The file of the form. What has no counterpart is refused by its name."""
    file, purpose = form.get("file"), form.get("purpose")
    if not isinstance(file, UploadFile) or not file.filename:
        raise InvalidError("file: is required, with a name.", [("/file", "is required, with a name")])
    if purpose != PURPOSE:
        words = f"must be {PURPOSE}"
        raise InvalidError(f"purpose: {words}. The server keeps files to train on.", [("/purpose", words)])
    for key in form:
        if key not in ("file", "purpose"):
            name = key.partition("[")[0][:60]
            raise InvalidError(
                f"{name}: has no counterpart. A file is kept until it is deleted.", [(f"/{name}", "has no counterpart")]
            )
    return file


def _kept(server: Server, me: Actor, file: UploadFile) -> Dataset:
    name = (file.filename or "")[-255:]
    datasets.file_format(name)
    with copied(file, server.app.settings.folder) as path:
        found = datasets.bring(server.ctx, me.member_id, path, name).dataset
    if found.row_format != RowFormat.TASK:  # nothing is trained on tasks
        data_checking.begin(server.ctx, found)
    return found


def _of_dataset(dataset: Dataset) -> StoredFile:
    return StoredFile(
        id=upload_id(dataset.sha256),
        bytes=dataset.size,
        created_at=int(dataset.created_at),
        filename=dataset.name,
        purpose="fine-tune",
    )


@router.get("", operation_id="openai_list_files", summary="List files to train on, newest first")
def listing(server: ServerDep, me: CurrentUser, asked: Annotated[FileQuery, Query()]) -> ListPage[StoredFile]:
    """Your own uploads. A result of a job is named by its job."""
    rows, more = server.openai_queries.uploads(
        me.member_id,
        after=None if asked.after is None else sha256_of(asked.after),
        limit=min(asked.limit, MOST),
        oldest_first=asked.order == "asc",
    )
    files = [
        StoredFile(
            id=upload_id(row["sha256"]),
            bytes=row["size"],
            created_at=int(row["created_at"]),
            filename=row["name"],
            purpose="fine-tune",
        )
        for row in rows
    ]
    return ListPage[StoredFile].of(files, has_more=more)


@router.get("/{file_id}", operation_id="openai_get_file", summary="Get a file")
def one(server: ServerDep, me: CurrentUser, file_id: FileId) -> StoredFile:
    """Your own upload, or a result of a job. No other member can see an upload, even with its id."""
    result = result_of(file_id)
    return _of_result(server, me, result) if result else _of_dataset(_own(server, me, file_id))


def _own(server: Server, me: Actor, file_id: str) -> Dataset:
    sha256 = sha256_of(file_id)
    try:
        return datasets.dataset_by_id(server.ctx, me, sha256)
    except NotFoundError:
        raise NotFoundError(f"There is no file {file_id}.") from None


def _of_result(server: Server, me: Actor, result: Result) -> StoredFile:
    check_seen(server, me, result.job_id)
    row = server.queries.job(result.job_id, server.ctx.clock.now())
    size = len(_metrics(server, result)) if result.kind == "metrics" else (row or {}).get("adapter_bytes")
    if row is None or size is None:
        raise NotFoundError(f"There is no file {result.id}.")
    return StoredFile(
        id=result.id,
        bytes=size,
        created_at=int(row["created_at"]),
        filename=result.name,
        purpose="fine-tune-results",
    )


def _metrics(server: Server, result: Result) -> bytes:
    return sessions.metrics_as_csv(server, result.job_id).encode()


@router.get(
    "/{file_id}/content",
    operation_id="openai_download_file",
    summary="Download a file",
    response_class=StreamingResponse,
    responses=BINARY | {200: {"content": {kind: {"schema": BYTES} for kind in KINDS}}},
)
def content(server: ServerDep, me: CurrentUser, request: Request, file_id: FileId) -> Response:
    """An upload as it is kept, the metrics of a job as CSV, or its adapter as a zip file. Also a range of the bytes."""
    result = result_of(file_id)
    if result is None:
        dataset = _own(server, me, file_id)
        return stored(
            request,
            server.ctx.stores.local(),
            dataset.key,
            size=dataset.size,
            sha256=dataset.sha256,
            media_type=OCTETS,
            name=f"{dataset.sha256[:12]}.{dataset.file_format}",
        )
    if result.kind == "metrics":
        check_seen(server, me, result.job_id)
        return Response(_metrics(server, result), media_type="text/csv")
    check_own(server, me, result.job_id)
    return sessions.adapter(server, request, result.job_id)


@router.delete("/{file_id}", operation_id="openai_delete_file", summary="Delete a file")
def delete(server: ServerDep, me: CurrentUser, file_id: FileId) -> DeletedFile:
    """Your own upload. Refused while an unfinished job needs it."""
    if result := result_of(file_id):
        check_own(server, me, result.job_id)
        raise ForbiddenError(f"File {file_id} belongs to job {result.job_id}. It is deleted with the job.")
    _own(server, me, file_id)
    datasets.delete_dataset(server.ctx, me, sha256_of(file_id))
    return DeletedFile(id=file_id)
