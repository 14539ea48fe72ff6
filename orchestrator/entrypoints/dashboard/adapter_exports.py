"""The part of a job's page that exports its adapter on the server or on a machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import RedirectResponse, Response

from orchestrator.domain.exports import ExportFormat, ExportSettings, Onto, WeightType
from orchestrator.entrypoints.dashboard.curve import OwnedJob
from orchestrator.entrypoints.dashboard.render import Viewer, acted, by_script, piece
from orchestrator.entrypoints.http.dependencies import Server, ServerDep
from orchestrator.services import adapter_exports, machine_exports

router = APIRouter(include_in_schema=False)


def _settings(
    form: Annotated[ExportFormat, Form(alias="format")],
    kind: Annotated[WeightType | None, Form(alias="type")] = None,
    onto: Annotated[Onto, Form()] = Onto.ORIGINAL,
) -> ExportSettings:
    # A GGUF adapter has one type, and what the form says of others does not concern it.
    plain = form is ExportFormat.GGUF_ADAPTER
    return ExportSettings(format=form, type=None if plain else kind, onto=Onto.ORIGINAL if plain else onto)


Settings = Annotated[ExportSettings, Depends(_settings)]


def values(server: Server, row: dict[str, Any]) -> dict[str, Any]:
    """The variables of the section's template, besides `job`."""
    found = adapter_exports.listed(server.ctx, row["id"])
    on_machines = machine_exports.listed(server.ctx, row["id"])
    return {
        "machine_exports": on_machines,
        "all_formats": list(ExportFormat),
        "is_waiting": any(not job.state.is_final for _, job in on_machines),
        "exports": found,
        "formats": [form for form in ExportFormat if form not in {each.settings.format for each in found}],
        "cannot_export": adapter_exports.missing(server.ctx),
        "is_exporting": any(not each.state.is_final for each in found),
        "export_problem": "",
    }


@router.get("/jobs/{job_id}/exports")
def section(server: ServerDep, job_id: OwnedJob) -> Response:
    """The section, which the page asks for again while an export is running."""
    return _section(server, job_id)


@router.post("/jobs/{job_id}/exports")
def start(
    request: Request,
    server: ServerDep,
    me: Viewer,
    job_id: OwnedJob,
    settings: Settings,
) -> Response:
    """Start an export."""
    return _act(request, server, job_id, lambda: adapter_exports.start(server.ctx, me, job_id, settings))


@router.post("/jobs/{job_id}/machine-exports")
def start_on_machine(
    request: Request,
    server: ServerDep,
    me: Viewer,
    job_id: OwnedJob,
    settings: Settings,
) -> Response:
    """Queue an export on a machine."""
    return _act(request, server, job_id, lambda: machine_exports.start(server.ctx, me, job_id, settings))


@router.post("/jobs/{job_id}/exports/{form}/remove")
def remove(request: Request, server: ServerDep, me: Viewer, job_id: OwnedJob, form: ExportFormat) -> Response:
    """Cancel an export, or delete its files."""
    return _act(request, server, job_id, lambda: adapter_exports.remove(server.ctx, me, job_id, form))


def _act(request: Request, server: Server, job_id: str, act: Callable[[], Any]) -> Response:
    def answer(problem: str) -> Response:
        return (
            _section(server, job_id, problem)
            if by_script(request)
            else RedirectResponse(f"/jobs/{job_id}#exports", 303)
        )

    return acted(request, act, answer)


def _section(server: Server, job_id: str, problem: str = "") -> Response:
    row = server.queries.job(job_id, server.ctx.clock.now())
    assert row is not None
    return piece("job_exports.html", **{**values(server, row), "job": row, "export_problem": problem})
