"""A new job: the data is looked into, the plan follows every change, and the form does what the job file does."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from orchestrator.adapters.token_preview import TokenLooks
from orchestrator.domain.errors import InvalidError, NotFoundError, TrainhopError
from orchestrator.domain.model import Checkpoint, Job
from orchestrator.entrypoints.dashboard import job_form
from orchestrator.entrypoints.dashboard.jobs import submittable
from orchestrator.entrypoints.dashboard.render import Viewer, page, piece
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, Server, ServerDep, Sha256
from orchestrator.entrypoints.http.uploads import spooled
from orchestrator.ports.providers import StoreError
from orchestrator.ports.repository import Dataset
from orchestrator.services import clones, datasets, hub_tokens, jobs, plans
from orchestrator.services.dataset_preview import Preview, preview, with_tokens
from orchestrator.services.errors import from_store
from orchestrator.services.jobs import Actor
from worker.shared.messages import FileFormat, RowFormat

router = APIRouter(include_in_schema=False)
api = APIRouter(tags=["datasets"], responses=PROBLEMS)

DATASETS_OFFERED = 12
DEFAULT_LENGTH = 1024
Row = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """What lengths are measured with, and what is trained on."""

    base_model: Annotated[str, Query(max_length=300)] = ""
    sequence_len: Annotated[int, Query(ge=8, le=1_048_576)] = DEFAULT_LENGTH
    train_on_inputs: bool = False


How = Annotated[Measure, Depends(Measure)]


def looks(request: Request) -> TokenLooks:
    """What looks at rows by token; made when first asked for."""
    state = request.app.state
    if not hasattr(state, "token_looks"):
        server: Server = state.server
        settings = server.app.settings
        hub = {"endpoint": settings.hub_endpoint, "cache": settings.hub_cache}
        state.token_looks = TokenLooks(server.ctx.catalog, offline=settings.offline, **hub)
    return state.token_looks


@router.get("/submit")
def form(
    request: Request,
    server: ServerDep,
    me: Viewer,
    preset: Annotated[str, Query(max_length=20)] = "",
    clone: Annotated[str, Query(max_length=64)] = "",
    begin: Annotated[str, Query(alias="from", pattern=r"^([0-9a-f]{64})?$")] = "",
    data: Annotated[str, Query(pattern=r"^([0-9a-f]{64})?$")] = "",
) -> Response:
    """The form: empty, from a preset, or with another job's file; `from` names its checkpoint to begin with."""
    if clone:
        row = server.views.job(clone, server.ctx.clock.now())
        if row is None or not me.may_see(row["member_id"]):
            raise NotFoundError(f"there is no job {clone}")
        values = job_form.to_form(submittable(row["spec"])) | {"from": begin}
    else:
        chosen = preset if preset in job_form.PRESETS else "try"
        values = job_form.to_form(job_form.PRESETS[chosen][2]) | {"preset": chosen}
    return _form(request, server, me, values | ({"data": data} if data else {}) | {"clone": clone})


def _form(
    request: Request, server: Server, me: Actor, values: Row, *, status: int = 200, error: InvalidError | None = None
) -> Response:
    known = server.views.datasets(member_id=me.member_id, limit=DATASETS_OFFERED, before=None).items
    chosen = values.get("data")
    begin = _beginning(server, me, values)
    if chosen and chosen not in {d["sha256"] for d in known}:
        known = [*_maybe(server, chosen), *known]
    return page(
        request,
        "submit.html",
        me,
        status=status,
        fields=job_form.FIELDS,
        presets=job_form.PRESETS,
        values={"preset": "", "clone": "", "from": ""} | values,
        begin=begin,
        fixed=job_form.FIXED if begin else frozenset(),
        datasets=known,
        problem=str(error) if error else "",
        faults=list(error.problems) if error else [],
        wrong={where.strip("/").partition("/")[0] for where, _ in error.problems} if error else set[str](),
    )


def _beginning(server: Server, me: Actor, values: Row) -> Checkpoint | None:
    """The checkpoint that the form's clone is to begin with."""
    if not (values.get("clone") and values.get("from")):
        return None
    with server.ctx.uow() as tx:
        return clones.kept(tx, jobs.owned(tx, me, values["clone"]), values["from"])


def _queue(server: Server, me: Actor, values: Row) -> Job:
    spec, key = job_form.from_form(values), values.get("key") or None
    if origin := values.get("clone"):
        return clones.submit_clone(server.ctx, me, spec, origin, checkpoint=values.get("from") or None, key=key)
    return jobs.submit(server.ctx, me, spec, key=key)


def _maybe(server: Server, sha256: str) -> list[Row]:
    try:
        return [vars(datasets.dataset_by_id(server.ctx, sha256))]
    except NotFoundError:
        return []


@router.post("/submit")
async def submit(request: Request, server: ServerDep, me: Viewer) -> Response:
    """Queue the job; without a script the data file comes along."""
    async with request.form(max_files=1, max_part_size=1 << 20) as sent:
        values: Row = {k: v for k, v in sent.items() if isinstance(v, str)}
        file = sent.get("file")
        try:
            if isinstance(file, UploadFile) and file.filename:
                stored = await run_in_threadpool(_store_upload, server, me, file)
                values["data"] = stored.sha256
            job = await run_in_threadpool(_queue, server, me, values)
        except InvalidError as error:
            shown = {f.key: "" for f in job_form.FIELDS} | {"data": "", "prompts": "", "more": ""} | values
            return await run_in_threadpool(_form, request, server, me, shown, status=422, error=error)
    return RedirectResponse(f"/jobs/{job.id}", 303)


def _store_upload(server: Server, me: Actor, file: UploadFile) -> Dataset:
    with tempfile.NamedTemporaryFile(dir=server.app.settings.folder, prefix=".incoming-") as copy:
        while chunk := file.file.read(1 << 20):
            copy.write(chunk)
        copy.flush()
        return datasets.add_dataset(server.ctx, me.member_id, Path(copy.name), file.filename or "data.jsonl")


@router.post("/submit/plan")
async def plan(request: Request, server: ServerDep, me: Viewer) -> Response:
    """What would run where, for the form as it is."""
    async with request.form(max_files=0) as sent:
        values = {k: v for k, v in sent.items() if isinstance(v, str)}
    try:
        spec = job_form.from_form(values)
        begin = await run_in_threadpool(_beginning, server, me, values)
        found = await run_in_threadpool(plans.plan, server.ctx, me, spec, first_step=begin.step if begin else 0)
    except TrainhopError as error:
        faults = list(error.problems) if isinstance(error, InvalidError) else []
        return piece("plan.html", plan=None, problem=str(error), faults=faults, now=server.ctx.clock.now())
    machines = request.app.state.live.machines
    places = {p.name: p for p in await run_in_threadpool(machines.places)}
    return piece("plan.html", plan=found, places=places, problem="", faults=[], now=server.ctx.clock.now())


@router.post("/submit/data")
async def bring(
    request: Request, server: ServerDep, me: Viewer, name: Annotated[str, Query(min_length=1, max_length=255)], how: How
) -> Response:
    """Keep a data file if all of its rows are right, and show what is in it either way."""
    container = datasets.file_format(name)
    async with spooled(request, server.app.settings.folder) as path:
        look = await run_in_threadpool(_preview, request, me, path, RowFormat.AUTO, container, how)
        stored = None
        if not look.faults:
            stored = await run_in_threadpool(datasets.add_dataset, server.ctx, me.member_id, path, name)
    return piece("preview.html", preview=look, name=name, sha256=stored.sha256 if stored else "")


@router.get("/submit/data/{sha256}")
def look_again(request: Request, server: ServerDep, me: Viewer, sha256: Sha256, how: How) -> Response:
    """What is in a data file that was brought before."""
    dataset, look = _stored_preview(request, server, me, sha256, how)
    return piece("preview.html", preview=look, name=dataset.name, sha256=sha256)


def _stored_preview(request: Request, server: Server, me: Actor, sha256: str, how: Measure) -> tuple[Dataset, Preview]:
    dataset = datasets.dataset_by_id(server.ctx, sha256)
    with tempfile.NamedTemporaryFile(dir=server.app.settings.folder, prefix=".look-") as copy:
        try:
            for chunk in server.ctx.stores.local().read(dataset.key):
                copy.write(chunk)
        except StoreError as error:
            raise from_store(error) from error
        copy.flush()
        kinds = RowFormat(dataset.row_format), FileFormat(dataset.file_format)
        found = _preview(request, me, Path(copy.name), *kinds, how)
    return dataset, found


def _preview(
    request: Request, me: Actor, path: Path, row_format: RowFormat, container: FileFormat, how: Measure
) -> Preview:
    asked = {"sequence_len": how.sequence_len, "train_on_inputs": how.train_on_inputs}
    found = preview(path, row_format, container, **asked)
    if not (found.rows and how.base_model):
        return found
    kind = RowFormat(found.type)
    token = hub_tokens.token_of(request.app.state.server.ctx, me.member_id)
    look = looks(request).of(how.base_model, path, kind, container, token=token, **asked)
    return with_tokens(found, look, how.sequence_len)


_PLAIN = (
    *("type", "rows", "tokens", "truncated", "repeated"),
    *("untrained", "measured", "exact", "refusal", "away"),
)


class DatasetLook(BaseModel):
    """What is in a data file; lengths in tokens, counted by the model's tokenizer if `exact`, and then `by_token`.

    `refusal` is what a session with this model would fail with; `away` says why nothing is there by token.
    """

    type: str
    rows: int
    tokens: int
    truncated: int
    repeated: int
    untrained: int
    measured: int
    exact: bool
    refusal: str
    away: str
    shown: list[list[dict[str, Any]]]
    by_token: list[dict[str, Any]]
    histogram: list[dict[str, Any]]


@api.get("/datasets/{sha256}/preview", operation_id="preview_dataset", summary="A look into an uploaded file")
def preview_dataset(
    request: Request,
    server: ServerDep,
    me: CurrentUser,
    sha256: Sha256,
    how: How,
) -> DatasetLook:
    """The first rows as they will be read, which parts are trained on, and how long rows are."""
    found = _stored_preview(request, server, me, sha256, how)[1]
    return DatasetLook(
        **{k: getattr(found, k) for k in _PLAIN},
        shown=[[vars(turn) for turn in row] for row in found.shown],
        by_token=[asdict(row) for row in found.by_token],
        histogram=[vars(bar) for bar in found.bars],
    )
