"""The page for a new job: data preview, plan, and the form."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from orchestrator.domain.accounts import Actor
from orchestrator.domain.errors import FindingsError, InvalidError, NotFoundError, TrainhopError
from orchestrator.domain.jobs import Checkpoint, Job
from orchestrator.domain.storage import Dataset
from orchestrator.entrypoints.dashboard import job_form
from orchestrator.entrypoints.dashboard.jobs import submittable
from orchestrator.entrypoints.dashboard.render import Viewer, page, piece
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, Server, ServerDep, Sha256, check_own
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute
from orchestrator.entrypoints.http.uploads import copied, spooled
from orchestrator.services import access, audits, clones, data_checking, datasets, hub_tokens, jobs, plans
from orchestrator.services.context import Context
from orchestrator.services.data_reading import preview, with_fault
from orchestrator.services.dataset_preparing import Source, prepared
from orchestrator.services.dataset_preview import Preview, with_tokens
from orchestrator.services.named_columns import named_columns
from worker.shared.dataset_spec import DatasetSpec, FileFormat, RowFormat, TaughtTurns
from worker.shared.job_spec import JobSpec
from worker.shared.long_texts import TRUNCATE
from worker.shared.row_keys import DatasetError
from worker.shared.taught_turns import USUAL

router = APIRouter(include_in_schema=False)
api = APIRouter(prefix=PREFIX, tags=["datasets"], route_class=ApiRoute, responses=PROBLEMS)

DATASETS_OFFERED = 12
DEFAULT_LENGTH = 1024
Row = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """The settings that a preview depends on."""

    base_model: Annotated[str, Query(max_length=300)] = ""
    sequence_len: Annotated[int, Query(ge=8, le=1_048_576)] = DEFAULT_LENGTH
    train_on_inputs: bool = False


How = Annotated[Measure, Depends(Measure)]


@router.get("/submit")
def form(
    request: Request,
    server: ServerDep,
    me: Viewer,
    preset: Annotated[str, Query(max_length=20)] = "",
    model: Annotated[str, Query(max_length=300)] = "",
    clone: Annotated[str, Query(max_length=64)] = "",
    begin: Annotated[str, Query(alias="from", pattern=r"^([0-9a-f]{64})?$")] = "",
    data: Annotated[str, Query(pattern=r"^([0-9a-f]{64})?$")] = "",
) -> Response:
    """The form: from a preset, perhaps with another model, or cloned from a job.

    `from` is the checkpoint to start from.
    """
    if clone:
        row = server.queries.job(clone, server.ctx.clock.now())
        check_own(server, me, clone)
        assert row is not None
        values = job_form.to_form(submittable(row["spec"])) | {"from": begin}
    else:
        chosen = preset if preset in job_form.PRESETS else "try"
        values = job_form.to_form(job_form.PRESETS[chosen][2]) | {"preset": chosen}
        if model:
            values |= {"base_model": model, "name": model.rpartition("/")[2].partition("@")[0].lower()}
    return _form(request, server, me, values | ({"data": data} if data else {}) | {"clone": clone})


def _form(
    request: Request, server: Server, me: Actor, values: Row, *, status: int = 200, error: InvalidError | None = None
) -> Response:
    known = server.queries.datasets(member_id=me.member_id, limit=DATASETS_OFFERED, before=None, rows_only=True).items
    chosen = values.get("data")
    begin = _beginning(server, me, values)
    if chosen and chosen not in {d["sha256"] for d in known}:
        known = [*_maybe(server, me, chosen), *known]
    return page(
        request,
        "submit.html",
        me,
        status=status,
        fields=job_form.FIELDS,
        presets=job_form.PRESETS,
        values={"preset": "", "clone": "", "from": "", "columns": ""} | values,
        begin=begin,
        fixed=job_form.FIXED if begin else frozenset(),
        datasets=known,
        words=audits.words_of(server.ctx, {d["sha256"] for d in known}),
        problem=str(error) if error else "",
        faults=list(error.problems) if error else [],
        has_findings=isinstance(error, FindingsError),
        wrong={where.strip("/").partition("/")[0] for where, _ in error.problems} if error else set[str](),
    )


def _beginning(server: Server, me: Actor, values: Row) -> Checkpoint | None:
    """The checkpoint that the clone starts from."""
    if not (values.get("clone") and values.get("from")):
        return None
    with server.ctx.uow() as tx:
        return clones.kept(tx, access.owned_job(tx, me, values["clone"]), values["from"])


def _plan(server: Server, me: Actor, values: Row) -> plans.Plan:
    spec, begin = job_form.from_form(values), _beginning(server, me, values)
    if not values.get("clone"):
        return plans.plan(server.ctx, me, spec)
    with server.ctx.uow() as tx:
        original = access.owned_job(tx, me, values["clone"])
    return plans.plan(
        server.ctx,
        me,
        spec,
        first_step=begin.step if begin else 0,
        given=clones.datasets_of(original),
        begun=original.spec if begin is not None else None,
    )


def _queue(server: Server, me: Actor, values: Row) -> Job:
    spec, key = job_form.from_form(values), values.get("key") or None
    if origin := values.get("clone"):
        return clones.submit_clone(server.ctx, me, spec, origin, checkpoint=values.get("from") or None, key=key)
    return jobs.submit(server.ctx, me, spec, key=key, write=server.write_batcher.write_from_thread).job


def _maybe(server: Server, me: Actor, sha256: str) -> list[Row]:
    try:
        return [vars(datasets.dataset_by_id(server.ctx, me, sha256))]
    except NotFoundError:
        return []


@router.post("/submit")
async def submit(request: Request, server: ServerDep, me: Viewer) -> Response:
    """Queue the job. Without JavaScript the form includes the data file."""
    values: Row = {}
    try:
        await _sent(request, server, me, values)
        job = await run_in_threadpool(_queue, server, me, values)
    except InvalidError as error:
        return await run_in_threadpool(_form, request, server, me, _EMPTY | values, status=422, error=error)
    return RedirectResponse(f"/jobs/{job.id}", 303)


@router.post("/submit/clean")
async def use_clean_copy(request: Request, server: ServerDep, me: Viewer) -> Response:
    """Make a clean copy of the form's data, and show the form with it."""
    values: Row = {}
    try:
        await _sent(request, server, me, values)
        made = await run_in_threadpool(data_checking.clean_copy, server.ctx, me, values.get("data", ""))
    except InvalidError as error:
        return await run_in_threadpool(_form, request, server, me, _EMPTY | values, status=422, error=error)
    return await run_in_threadpool(_form, request, server, me, _EMPTY | values | {"data": made.sha256})


_EMPTY: Row = {f.key: "" for f in job_form.FIELDS} | {"data": "", "prompts": "", "more": ""}


async def _sent(request: Request, server: Server, me: Actor, values: Row) -> None:
    """Read the fields of the form into `values`. A data file in it is stored."""
    async with request.form(max_files=1, max_part_size=1 << 20) as sent:
        values |= {k: v for k, v in sent.items() if isinstance(v, str)}
        file = sent.get("file")
        if isinstance(file, UploadFile) and file.filename:
            columns = str(values.get("columns") or "")
            values["data"] = (await run_in_threadpool(_store_upload, server, me, file, columns)).sha256


def _store_upload(server: Server, me: Actor, file: UploadFile, columns: str) -> Dataset:
    mapping = named_columns(columns)
    with copied(file, server.app.settings.folder) as path:
        return datasets.bring(server.ctx, me.member_id, path, file.filename or "data.jsonl", mapping=mapping).dataset


@router.post("/submit/plan")
async def plan(request: Request, server: ServerDep, me: Viewer) -> Response:
    """The plan for the current form."""
    async with request.form(max_files=0) as sent:
        values = {k: v for k, v in sent.items() if isinstance(v, str)}
    try:
        planned = await run_in_threadpool(_plan, server, me, values)
    except TrainhopError as error:
        faults = list(error.problems) if isinstance(error, InvalidError) else []
        return piece("plan.html", plan=None, problem=str(error), faults=faults, now=server.ctx.clock.now())
    places = {p.name: p for p in await run_in_threadpool(server.machines.places)}
    previewed = bool(values.get("data"))  # the preview of the file says the same of it
    return piece(
        "plan.html",
        plan=planned,
        places=places,
        previewed=previewed,
        problem="",
        faults=[],
        now=server.ctx.clock.now(),
    )


@router.post("/submit/data")
async def bring(
    request: Request,
    server: ServerDep,
    me: Viewer,
    name: Annotated[str, Query(min_length=1, max_length=255)],
    how: How,
    columns: Annotated[str, Query(max_length=4_000)] = "",
) -> Response:
    """Store a data file if all rows are valid, and show its preview in any case."""
    datasets.file_format(name)
    mapping = named_columns(columns)
    async with spooled(request, server.app.settings.folder) as path:
        look, stored = await run_in_threadpool(_brought, request, me, Source(path=path, name=name), mapping, how)
    sha256 = stored.sha256 if stored else ""
    return await run_in_threadpool(_shown, server, look, stored.name if stored else name, sha256)


def _brought(request: Request, me: Actor, source: Source, mapping: Row, how: Measure) -> tuple[Preview, Dataset | None]:
    ctx: Context = request.app.state.server.ctx
    try:
        with prepared([source], datasets.file_format(source.name), RowFormat.AUTO, mapping) as ready:
            look = _preview(request, me, ready.path, ready.row_format, ready.container, how)
            if look.faults:
                return look, None
            stored = datasets.keep(ctx, me.member_id, ready).dataset
            look = replace(look, unused=(*ready.unread, *look.unused))
    except DatasetError as error:
        return with_fault(error), None
    data_checking.begin(ctx, stored)
    return look, stored


@router.post("/submit/data/{sha256}")
async def look_again(request: Request, server: ServerDep, me: Viewer, sha256: Sha256) -> Response:
    """The preview of an earlier upload, as the job of the form would train on it."""
    async with request.form(max_files=0) as sent:
        values = {k: v for k, v in sent.items() if isinstance(v, str)} | {"data": sha256}
    return await run_in_threadpool(_form_preview, request, server, me, sha256, values)


def _form_preview(request: Request, server: Server, me: Actor, sha256: str, values: Row) -> Response:
    uploaded = datasets.dataset_by_id(server.ctx, me, sha256)
    job, read = _job_of(values), DatasetSpec(path=f"sha256:{sha256}")
    try:
        if job is not None:
            read = datasets.resolve_dataset(server.ctx, me.member_id, job.datasets[0], "/datasets/0/path")
    except InvalidError:
        job = None  # the plan says what is wrong with the form
    how = _measure(values) if job is None else Measure(job.base_model, job.sequence_len, job.train_on_inputs)
    look = _stored_preview(request, server, me, read.sha256 or sha256, how, job, read.taught)
    return _shown(server, look, uploaded.name, sha256)


def _job_of(values: Row) -> JobSpec | None:
    """The job file of the form. None for one that is not finished."""
    try:
        return job_form.from_form(values)
    except InvalidError:
        return None


def _measure(values: Row) -> Measure:
    """As much as an unfinished form says."""
    length = str(values.get("sequence_len") or "")
    known = int(length) if length.isdecimal() and len(length) < 8 else DEFAULT_LENGTH
    return Measure(base_model=str(values.get("base_model") or "")[:300], sequence_len=max(8, known))


def _shown(server: Server, look: Preview, name: str, sha256: str) -> Response:
    audit = audits.words_of(server.ctx, [sha256])[sha256] if sha256 else ""
    return piece("preview.html", preview=look, name=name, sha256=sha256, audit=audit)


def _stored_preview(
    request: Request,
    server: Server,
    me: Actor,
    sha256: str,
    how: Measure,
    job: JobSpec | None = None,
    taught: TaughtTurns = USUAL,
) -> Preview:
    dataset = datasets.dataset_by_id(server.ctx, me, sha256)
    kind, container = RowFormat(dataset.row_format), FileFormat(dataset.file_format)
    with datasets.copied(server.ctx, dataset) as path:
        return _preview(request, me, path, kind, container, how, job, taught)


def _preview(
    request: Request,
    me: Actor,
    path: Path,
    row_format: RowFormat,
    container: FileFormat,
    how: Measure,
    job: JobSpec | None = None,
    taught: TaughtTurns = USUAL,
) -> Preview:
    """The preview of a file. `job` and `taught` say more than `how`, where they are known."""
    options: Row = {"sequence_len": how.sequence_len, "train_on_inputs": how.train_on_inputs, "taught": taught}
    result = preview(path, row_format, container, **options)
    if not (result.rows and how.base_model):
        return result
    ctx: Context = request.app.state.server.ctx
    if ctx.looks is None:
        return result
    kind, now = RowFormat(result.type), ctx.clock.now()
    token = hub_tokens.token_of(ctx, me.member_id)
    is_split = job is None or job.excess_length_strategy != TRUNCATE
    options |= {"split_texts": is_split}
    if job is not None:
        options |= {"chat_template": job.own_template, "new_tokens": job if job.new_tokens else None}
    look = ctx.looks.of(how.base_model, path, kind, container, rendered_at=now, token=token, **options)
    return with_tokens(result, look, how.sequence_len, split_texts=is_split)


_PLAIN = (
    *("type", "rows", "tokens", "truncated", "repeated", "untrained", "measured", "exact", "refusal", "away"),
    *("unused", "findings", "split", "pieces"),
)


class DatasetLook(BaseModel):
    """The preview of a data file. Lengths are in tokens, counted with the model's tokenizer if `exact`.

    `refusal` is the error of a session with this model. `away` is the reason why `by_token` is empty. `unused` are keys
    of rows that training does not use. `findings` say what the model will do differently from what the rows teach.
    `split` texts are longer than the sequences, and split into `pieces` pieces.
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
    unused: list[str] = []
    findings: list[str] = []
    split: int = 0
    pieces: int = 0
    shown: list[list[dict[str, Any]]]
    by_token: list[dict[str, Any]]
    histogram: list[dict[str, Any]]


@api.get("/datasets/{sha256}/preview", operation_id="preview_dataset", summary="Preview an uploaded file")
def preview_dataset(request: Request, server: ServerDep, me: CurrentUser, sha256: Sha256, how: How) -> DatasetLook:
    """The first rows as they are read, the parts that are trained on, and a histogram of row lengths."""
    shown = _stored_preview(request, server, me, sha256, how)
    return DatasetLook(
        **{k: getattr(shown, k) for k in _PLAIN},
        shown=[[vars(turn) for turn in row] for row in shown.shown],
        by_token=[asdict(row) for row in shown.by_token],
        histogram=[vars(bar) for bar in shown.bars],
    )
