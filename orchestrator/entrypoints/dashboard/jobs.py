"""The list of jobs, the page of one, and what a person may do to it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import yaml
from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import ValidationError

from orchestrator.domain.errors import TrainhopError
from orchestrator.domain.lifecycle import JobState
from orchestrator.domain.model import Role
from orchestrator.entrypoints.api import notebooks
from orchestrator.entrypoints.dashboard.curve import ViewedJob
from orchestrator.entrypoints.dashboard.job_view import SECTIONS, look
from orchestrator.entrypoints.dashboard.render import Viewer, by_script, page, piece
from orchestrator.entrypoints.http.dependencies import Server, ServerDep
from orchestrator.services import job_deletion, jobs, mailbox
from orchestrator.services.jobs import Actor
from worker.shared.messages import JobSpec

router = APIRouter(include_in_schema=False)

JOBS_PER_PAGE = 50
COUNTED_MOST = 1_000
CLONES_SHOWN = 20
Row = dict[str, Any]


@router.get("/")
def listing(
    request: Request,
    server: ServerDep,
    me: Viewer,
    state: JobState | None = None,
    name: Annotated[str, Query(max_length=200)] = "",
    cursor: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """Jobs, newest first; somebody without any is shown how to get one."""
    now = server.ctx.clock.now()
    member_id = None if me.role is Role.ADMIN else me.member_id
    found = server.views.jobs(
        now=now, limit=JOBS_PER_PAGE, before=cursor, member_id=member_id, state=state, name=name or None
    )
    if not found.items and not (cursor or state or name) and found.next is None:
        return page(request, "first.html", me, demo=request.app.state.demo.state())
    values: Row = {"jobs": found.items, "next": found.next, "state": state, "name": name, "states": list(JobState)}
    values["counts"] = {s: server.pages.count(s, COUNTED_MOST) for s in JobState} if me.role is Role.ADMIN else {}
    if by_script(request):
        return piece("jobs_table.html", me=me, now=now, **values)
    asked = {"state": state, "name": name, "cursor": cursor}
    again = "/?" + urlencode({key: value for key, value in asked.items() if value})
    return page(request, "jobs.html", me, again=again, **values)


@router.get("/jobs/{job_id}")
def one(request: Request, server: ServerDep, me: Viewer, job_id: ViewedJob) -> Response:
    """The page of a job: everything is in it, the script only keeps it current."""
    found = look(server, request.app.state.live.machines, job_id)
    assert found is not None
    url = (server.app.settings.public_url or server.ctx.server_url()).rstrip("/")
    return page(
        request,
        "job.html",
        me,
        **{k: v for k, v in found.values.items() if k != "now"},
        sections=SECTIONS,
        forms=as_forms(found.row, url),
        differs=_differences(server, me, found.row),
        has_drive=mailbox.letter_store(server.ctx) is not None,
        clones=[c for c in server.views.clones(job_id, CLONES_SHOWN) if me.may_see(c["member_id"])],
    )


def as_forms(row: Row, url: str) -> list[tuple[str, str]]:
    """The same job as a file, as a command and as a request; each can be pasted as it stands."""
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
    """A stored job file without what says nothing and without what the server fills in itself."""
    try:
        plain = JobSpec.model_validate(spec).model_dump(mode="json", exclude_defaults=True)
    except ValidationError:
        return spec  # of another version: shown as it was kept
    for dataset in plain.get("datasets", ()):
        if dataset.get("sha256"):
            dataset["path"] = f"sha256:{dataset.pop('sha256')}"
        for filled in ("rows", "file_format"):
            dataset.pop(filled, None)
    return plain


def _differences(server: Server, me: Actor, row: Row) -> list[tuple[str, Any, Any]]:
    """What this job's file has changed against that of the job it was cloned from."""
    parent = server.views.job(row["cloned_from"], server.ctx.clock.now()) if row["cloned_from"] else None
    if parent is None or not me.may_see(parent["member_id"]):
        return []
    mine, theirs = row["spec"], parent["spec"]
    return [(k, theirs.get(k), mine.get(k)) for k in sorted(mine | theirs) if mine.get(k) != theirs.get(k)]


Act = Callable[[Any, Actor, str], jobs.Job]
_ACTIONS: dict[str, Act] = {
    "pause": jobs.pause,
    "resume": jobs.resume,
    "handover": jobs.hand_over,
    "cancel": jobs.cancel,
    "retry": jobs.retry,
}


def _answer(request: Request, server: Server, job_id: str, problem: str = "") -> Response:
    """After an action: the status section for the script, the whole page for everybody else."""
    if not by_script(request):
        return RedirectResponse(f"/jobs/{job_id}", 303)
    found = look(server, request.app.state.live.machines, job_id)
    assert found is not None
    return piece("job_status.html", **{**found.values, "problem": problem})


@router.post("/jobs/{job_id}/priority")
def priority(
    request: Request,
    server: ServerDep,
    me: Viewer,
    job_id: ViewedJob,
    priority: Annotated[int, Form(ge=-1000, le=1000)],
) -> Response:
    """Move the job in the queue."""
    return _act(request, server, job_id, lambda: jobs.set_priority(server.ctx, me, job_id, priority))


@router.post("/jobs/{job_id}/notebook")
def notebook(
    request: Request, server: ServerDep, me: Viewer, job_id: ViewedJob, drive: Annotated[bool, Form()] = False
) -> Response:
    """A notebook that trains the job: as a file, or in the Drive with the link that opens it in Colab."""
    made = notebooks.make(server, me, job_id, drive=drive)
    if made.url is not None:
        return page(request, "notebook.html", me, made=made)
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(made.file_name)}"}
    return Response(json.dumps(made.notebook), media_type="application/x-ipynb+json", headers=headers)


@router.post("/jobs/{job_id}/delete")
def delete(server: ServerDep, me: Viewer, job_id: ViewedJob) -> Response:
    """Remove the job for good; nothing of it is left to show."""
    job_deletion.delete(server.ctx, me, job_id)
    return RedirectResponse("/", 303)


@router.post("/jobs/{job_id}/{action}")
def act(request: Request, server: ServerDep, me: Viewer, job_id: ViewedJob, action: str) -> Response:
    """Pause, resume, cancel or retry."""
    chosen = _ACTIONS.get(action)
    if chosen is None:
        return RedirectResponse(f"/jobs/{job_id}", 303)
    return _act(request, server, job_id, lambda: chosen(server.ctx, me, job_id))


def _act(request: Request, server: Server, job_id: str, act: Callable[[], Any]) -> Response:
    try:
        act()
    except TrainhopError as error:
        if not by_script(request):
            raise
        return _answer(request, server, job_id, str(error))
    return _answer(request, server, job_id)
