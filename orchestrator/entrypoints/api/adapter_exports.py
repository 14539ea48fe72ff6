"""HTTP endpoints for exports of adapters: merged models and GGUF files that the server or a machine makes."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import FileResponse, StreamingResponse

from orchestrator.domain.exports import Export, ExportFormat, ExportSettings, ExportState, Onto, WeightType
from orchestrator.entrypoints.api import requests, responses
from orchestrator.entrypoints.api.jobs import Key, created
from orchestrator.entrypoints.api.responses import ResponseModel, StateWord, Time
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, JobId, ServerDep
from orchestrator.entrypoints.http.files import BINARY, OCTETS, stored
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute
from orchestrator.services import adapter_exports, machine_exports

router = APIRouter(prefix=PREFIX, tags=["records"], route_class=ApiRoute, responses=PROBLEMS)
FormatInPath = Annotated[ExportFormat, Path(description="The format of the export.")]
FileName = Annotated[str, Path(max_length=200, description="The file's name in the report.")]


class AdapterExport(ResponseModel):
    """An export on the server. `doing` is its current step, or why it failed.

    `report` is there once it has succeeded: `files` with their sizes and sha256, the `check`, and `commands`.
    """

    job: str
    format: ExportFormat
    type: WeightType | None
    onto: Onto
    state: ExportState
    doing: str
    at: Time
    report: dict[str, Any] | None


class MachineExport(ResponseModel):
    """An export of the adapter of `job` on a machine. `id` is its own job. `report` is as in `AdapterExport`."""

    id: str
    job: str
    format: ExportFormat
    type: WeightType | None
    onto: Onto
    state: StateWord
    created_at: Time
    finished_at: Time | None
    report: dict[str, Any] | None


def _shown(export: Export) -> AdapterExport:
    return AdapterExport.model_validate(
        vars(export) | vars(export.settings) | {"job": export.job_id, "report": export.report or None}
    )


@router.post("/jobs/{job_id}/exports", status_code=202, operation_id="export_adapter", summary="Export a job's adapter")
def start(server: ServerDep, me: CurrentUser, job_id: JobId, asked: requests.ExportCreate) -> AdapterExport:
    """Merge the adapter into its base model, or convert it to GGUF, on the server's own computer.

    The server needs torch for it. It works on one export at a time. An export is checked before it appears, and kept
    for a week.
    """
    return _shown(adapter_exports.start(server.ctx, me, job_id, ExportSettings(**asked.model_dump())))


@router.get("/jobs/{job_id}/exports", operation_id="list_exports", summary="List the exports of a job's adapter")
def listing(server: ServerDep, me: CurrentUser, job_id: JobId) -> responses.Items[AdapterExport]:
    """At most one of each format."""
    found = [_shown(each) for each in adapter_exports.exports_of(server.ctx, me, job_id)]
    return responses.Items[AdapterExport](items=found)


@router.get("/jobs/{job_id}/exports/{export_format}", operation_id="get_export", summary="Show an export")
def one(server: ServerDep, me: CurrentUser, job_id: JobId, export_format: FormatInPath) -> AdapterExport:
    """Its state and, once it has succeeded, its report."""
    return _shown(adapter_exports.find(server.ctx, me, job_id, export_format))


@router.delete(
    "/jobs/{job_id}/exports/{export_format}", status_code=204, operation_id="delete_export", summary="Delete an export"
)
def delete(server: ServerDep, me: CurrentUser, job_id: JobId, export_format: FormatInPath) -> None:
    """Cancel it, or delete its files."""
    adapter_exports.remove(server.ctx, me, job_id, export_format)


@router.head("/jobs/{job_id}/exports/{export_format}/files/{name}", include_in_schema=False)
@router.get(
    "/jobs/{job_id}/exports/{export_format}/files/{name}",
    operation_id="download_export",
    summary="Download a file of an export",
    response_class=FileResponse,
    responses=BINARY,
)
def file(server: ServerDep, me: CurrentUser, job_id: JobId, export_format: FormatInPath, name: FileName) -> Response:
    """The file or the requested range."""
    path, sha256 = adapter_exports.file_of(server.ctx, me, job_id, export_format, name)
    headers = {"ETag": f'"{sha256}"'}
    return FileResponse(path, headers=headers, media_type=OCTETS, filename=name, stat_result=path.stat())


@router.post(
    "/jobs/{job_id}:export",
    status_code=201,
    tags=["jobs"],
    operation_id="export_adapter_on_machine",
    summary="Export a job's adapter on a machine",
    response_model=responses.SubmittedJob,
)
def start_on_machine(
    server: ServerDep, me: CurrentUser, job_id: JobId, asked: requests.ExportCreate, key: Key = None
) -> Response:
    """Queue a job that merges the adapter into its base model, or converts it to GGUF, on a machine without a GPU.

    It is a job like any other, but nothing is kept before its end: another machine starts again from the beginning. Its
    files are stored when all checks have passed, and kept until it is deleted.
    """
    made = machine_exports.start(server.ctx, me, job_id, ExportSettings(**asked.model_dump()), key=key)
    return created(server, made.job.id, made.notes)


@router.get(
    "/jobs/{job_id}/machine-exports",
    operation_id="list_machine_exports",
    summary="List the exports of a job's adapter on machines",
)
def listing_on_machines(server: ServerDep, me: CurrentUser, job_id: JobId) -> responses.Items[MachineExport]:
    """Newest first. Of an export's own job, that export."""
    items = [
        vars(each) | each.settings | {"id": job.id, "job": each.trained_job, "state": job.state.word}
        for each, job in machine_exports.exports_of(server.ctx, me, job_id)
    ]
    return responses.Items[MachineExport].model_validate({"items": items})


@router.head("/jobs/{job_id}/machine-exports/files/{name}", include_in_schema=False)
@router.get(
    "/jobs/{job_id}/machine-exports/files/{name}",
    operation_id="download_machine_export",
    summary="Download a file of an export on a machine",
    response_class=StreamingResponse,
    responses=BINARY,
)
def file_of_machine(server: ServerDep, request: Request, me: CurrentUser, job_id: JobId, name: FileName) -> Response:
    """The file or the requested range. The job is the export's own."""
    store, key, size, sha256 = machine_exports.file_of(server.ctx, me, job_id, name)
    place = server.ctx.stores.get(store)
    return stored(request, place, key, size=size, sha256=sha256, media_type=OCTETS, name=name)
