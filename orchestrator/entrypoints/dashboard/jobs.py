"""The page of one job, and the actions on it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import quote

import yaml
from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import ValidationError

from orchestrator.domain.accounts import Actor
from orchestrator.entrypoints.api import notebooks
from orchestrator.entrypoints.dashboard import adapter_exports, chats, shares
from orchestrator.entrypoints.dashboard.curve import SECOND_AXIS, OwnedJob, ViewedJob
from orchestrator.entrypoints.dashboard.job_view import SECTIONS, look
from orchestrator.entrypoints.dashboard.render import Viewer, acted, by_script, page, piece
from orchestrator.entrypoints.http.dependencies import Server, ServerDep, check_seen
from orchestrator.services import audits, evaluations, jobs, mailbox
from orchestrator.services.job_differences import Difference, differences
from worker.shared.evaluation_spec import EvaluationSpec
from worker.shared.job_spec import JobSpec

router = APIRouter(include_in_schema=False)

CLONES_SHOWN = 20
Row = dict[str, Any]


@router.get("/jobs/{job_id}")
def one(request: Request, server: ServerDep, me: Viewer, job_id: ViewedJob) -> Response:
    """The page of a job. It is complete without the script, which only updates it."""
    is_own = check_seen(server, me, job_id)
    found = look(server, job_id, is_own=is_own)
    assert found is not None
    url = (server.app.settings.public_url or server.ctx.server_url()).rstrip("/")
    exports = adapter_exports.values(server, found.row)
    pairs = (*found.values["evaluations"], *exports["machine_exports"])
    apart = {job.id for _, job in pairs}  # these are listed apart
    return page(
        request,
        "job.html",
        me,
        **{k: v for k, v in found.values.items() if k != "now"},
        sections=SECTIONS,
        second_axis=SECOND_AXIS,
        forms=as_forms(found.row, url),
        differs=_differences(server, me, found.row),
        notebook_editor=_editor(server),
        data=_data(server, me, found.row),
        chat=chats.section(server, me, found.row),
        **exports,
        shares=shares.section(server, job_id) if is_own else [],
        clones=[
            c
            for c in server.queries.clones(job_id, CLONES_SHOWN)
            if me.may_see_jobs_of(c["member_id"]) and c["id"] not in apart
        ],
    )


def _data(server: Server, me: Actor, row: Row) -> list[tuple[audits.AuditedData, bool]]:
    """The job's data files, and whether the viewer can open their audits."""
    hashes = [entry.get("sha256") or "" for entry in row["spec"].get("datasets", ())]
    mine = row["member_id"] == me.member_id
    return [(data, mine) for data in audits.of_data(server.ctx, row["member_id"], filter(None, hashes))]


def _editor(server: Server) -> str:
    """The editor that opens notebooks of the store in use. Empty if there is none."""
    store = mailbox.mailbox_store(server.ctx)
    return store.notebook_editor if store is not None else ""


def as_forms(row: Row, url: str) -> list[tuple[str, str]]:
    """The job as YAML file, CLI command and HTTP request, each ready to paste."""
    if row["spec"].get("evaluation"):
        return [("CLI", f"trainhop evaluate {row['cloned_from']}\n")]
    if asked := row["spec"].get("export"):
        return [("CLI", f"trainhop export {asked['job']} --format {asked['format']} --on-machine\n")]
    if asked := row["spec"].get("chat"):
        return [("CLI", f"trainhop chat {asked['job']} --on-machine --minutes {asked['minutes']}\n")]
    spec = submittable(row["spec"])
    text = yaml.safe_dump(spec, sort_keys=False, allow_unicode=True)
    body = json.dumps(spec, ensure_ascii=False)
    return [
        ("YAML", text),
        ("CLI", f"trainhop submit - <<'TRAINHOP_JOB'\n{text}TRAINHOP_JOB\n"),
        ("curl", _as_curl(url, body)),
    ]


def _as_curl(url: str, body: str) -> str:
    lines = (
        f"curl -sS {shlex.quote(url)}/api/v1/jobs",
        '-H "Authorization: Bearer $TRAINHOP_TOKEN"',
        "-H 'Content-Type: application/json'",
        f"--data-binary {shlex.quote(body)}",
    )
    return " \\\n  ".join(lines) + "\n"


def submittable(spec: Row) -> Row:
    """A stored job file without defaults and without values that the server fills in."""
    try:
        plain = JobSpec.model_validate(spec).model_dump(mode="json", exclude_defaults=True)
    except ValidationError:
        return spec  # written by another version: shown unchanged

    for filled in ("rendered_at", "encoding", "numerics", "val_split", "lora_model"):
        plain.pop(filled, None)
    asked: Row = plain.get("evaluate") or {}
    asked.pop("measures", None)
    if asked.get("benchmarks"):
        asked["benchmarks"] = [f"{each['name']}@{each['revision']}" for each in asked["benchmarks"]]
    if asked.get("judge"):
        asked["judge"] = {"model": asked["judge"]["model"]}
    files = (asked.get("prompts"), asked.get("tasks"))
    for dataset in (*plain.get("datasets", ()), *(file for file in files if file)):
        if dataset.get("sha256"):
            dataset["path"] = f"sha256:{dataset.pop('sha256')}"
        for filled in ("rows", "file_format", "pieces"):
            dataset.pop(filled, None)
    return plain


def _differences(server: Server, me: Actor, row: Row) -> list[Difference]:
    """The keys in which this job's file differs from that of the job it was cloned from, whose values come first."""
    parent = server.queries.job(row["cloned_from"], server.ctx.clock.now()) if row["cloned_from"] else None
    if parent is None or not me.may_see_jobs_of(parent["member_id"]):
        return []
    return differences([parent["spec"], row["spec"]])


Act = Callable[[Any, Actor, str], jobs.Job]
_ACTIONS: dict[str, Act] = {
    "pause": jobs.pause,
    "resume": jobs.resume,
    "handover": jobs.hand_over,
    "cancel": jobs.cancel,
    "retry": jobs.retry,
}


def _answer(request: Request, server: Server, job_id: str, problem: str) -> Response:
    """The answer to an action: the status section for htmx, else a redirect to the page."""
    if not by_script(request):
        return RedirectResponse(f"/jobs/{job_id}", 303)
    found = look(server, job_id, is_own=True)
    assert found is not None
    return piece("job_status.html", **{**found.values, "problem": problem})


@router.post("/jobs/{job_id}/priority")
def priority(
    request: Request,
    server: ServerDep,
    me: Viewer,
    job_id: OwnedJob,
    priority: Annotated[int, Form(ge=-1000, le=1000)],
) -> Response:
    """Change the job's priority."""
    return _act(request, server, job_id, lambda: jobs.set_priority(server.ctx, me, job_id, priority))


@router.post("/jobs/{job_id}/notebook")
def notebook(
    request: Request, server: ServerDep, me: Viewer, job_id: OwnedJob, drive: Annotated[bool, Form()] = False
) -> Response:
    """A notebook that trains the job: as a file, or in the Drive with the link that opens it there."""
    made = notebooks.make(server, me, job_id, drive=drive)
    if made.url is not None:
        return page(request, "notebook.html", me, made=made, notebook_editor=_editor(server))
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(made.file_name)}"}
    return Response(json.dumps(made.notebook), media_type="application/x-ipynb+json", headers=headers)


@router.post("/jobs/{job_id}/evaluate")
def evaluate(server: ServerDep, me: Viewer, job_id: OwnedJob, settings: Annotated[EvaluationSpec, Form()]) -> Response:
    """Start an evaluation of the newest checkpoint, and go to its page."""
    made = evaluations.evaluate(server.ctx, me, job_id, settings)
    return RedirectResponse(f"/jobs/{made.job.id}", 303)


@router.post("/jobs/{job_id}/delete")
def delete(server: ServerDep, me: Viewer, job_id: OwnedJob) -> Response:
    """Delete the job and go to the list of jobs."""
    jobs.delete(server.ctx, me, job_id)
    return RedirectResponse("/", 303)


@router.post("/jobs/{job_id}/{action}")
def act(request: Request, server: ServerDep, me: Viewer, job_id: OwnedJob, action: str) -> Response:
    """Pause, resume, cancel or retry."""
    chosen = _ACTIONS.get(action)
    if chosen is None:
        return RedirectResponse(f"/jobs/{job_id}", 303)
    return _act(request, server, job_id, lambda: chosen(server.ctx, me, job_id))


def _act(request: Request, server: Server, job_id: str, act: Callable[[], Any]) -> Response:
    return acted(request, act, lambda problem: _answer(request, server, job_id, problem))
