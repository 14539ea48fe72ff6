"""Exports of adapters on machines: jobs that begin with the adapter of a finished job, and end with files in the store.

A session needs little memory and no GPU. Nothing of an export is kept before its end, so one that is cut starts again
from the beginning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from orchestrator.domain.accounts import Actor
from orchestrator.domain.errors import ConflictError, InvalidError, KeyTakenError, NotFoundError, UnavailableError
from orchestrator.domain.exports import ExportFormat, ExportSettings, MachineExport, Onto, WeightType
from orchestrator.domain.jobs import Event, Job
from orchestrator.ports.catalog import BaseModel
from orchestrator.ports.providers import ProviderUnavailable
from orchestrator.ports.repository import Transaction
from orchestrator.ports.stores import StoreError
from orchestrator.services.access import owned_job
from orchestrator.services.capacity import is_offline
from orchestrator.services.context import Context
from orchestrator.services.follow_ups import follow_up
from orchestrator.services.hub_tokens import token_of
from orchestrator.services.jobs import Ready, Submission, earlier, job_of_winner, notes_of, queue
from worker.shared.export_spec import EXPORTABLE, ExportSpec, no_form, not_exportable
from worker.shared.job_spec import JobSpec
from worker.shared.memory_estimate import Need
from worker.shared.results import MAX_EXPORT_BYTES

NEED = Need(gpu_bytes=0, host_bytes=2 << 30)
"""Memory of a session: 1.5 GB for a model of 7B, which is read one tensor at a time, and torch."""
_BYTES = {WeightType.Q8_0: 34 / 32}
"""Bytes of a weight. Others have 2."""
SPARE_BYTES = 1 << 30
"""Stay free in the store."""


def start(ctx: Context, actor: Actor, job_id: str, settings: ExportSettings, *, key: str | None = None) -> Submission:
    """Queue an export of the adapter of a finished job that the actor may see. With the same `key` it is queued once.

    It belongs to the job's owner, as an evaluation does. Raises `InvalidError` or `ConflictError` with one sentence if
    it cannot be made like this, or if the store has no room for it.
    """
    with ctx.uow() as tx:
        trained = owned_job(tx, actor, job_id)
    request_hash = hashlib.sha256(f"export {job_id} {settings}".encode()).hexdigest()
    if key is not None and (again := earlier(ctx, actor, key, request_hash)) is not None:
        return Submission(job=again, is_new=False, notes=notes_of(ctx, again.id))
    _refuse(trained, settings)
    spec = _spec_of(trained, settings)
    model = _model(ctx, trained, spec)
    needed = _size(trained, model, settings)
    if needed is not None:
        _refuse_large_file(ctx, trained, settings, needed)
        _refuse_full_store(ctx, needed)
    ready = Ready(
        spec=spec,
        as_json=spec.model_dump(mode="json"),
        need=NEED,
        notes=(),
        accepted=(),
        key=key,
        request_hash=request_hash,
    )
    try:
        with ctx.uow() as tx:
            trained = owned_job(tx, actor, job_id)  # locked: it cannot be deleted before its export is queued
            _refuse(trained, settings)
            job = _queued(ctx, tx, actor, ready, trained)
    except KeyTakenError:
        winner = job_of_winner(ctx, actor, ready)
        return Submission(job=winner, is_new=False, notes=notes_of(ctx, winner.id))
    ctx.wake()
    return Submission(job=job, is_new=True, notes=())


def _queued(ctx: Context, tx: Transaction, actor: Actor, ready: Ready, trained: Job) -> Job:
    owner = trained.member_id if tx.members.get_for_share(trained.member_id) is not None else actor.member_id
    job = queue(ctx, tx, actor, ready, cloned_from=trained.id, owner=owner)
    settings, at = ready.as_json["export"], job.created_at
    tx.machine_exports.add(MachineExport(job_id=job.id, trained_job=trained.id, settings=settings, created_at=at))
    data = {"job": job.id, "format": settings["format"]}
    trained.events.append(Event(job_id=trained.id, at=at, kind="job.exported", actor=actor.name, data=data))
    tx.jobs.save(trained)
    return job


def _refuse(trained: Job, settings: ExportSettings) -> None:
    if trained.adapter_key is None:
        raise ConflictError(f"Job {trained.id} has no adapter that can be exported. Wait until it has succeeded.")
    if settings.format is ExportFormat.MERGED and settings.type is WeightType.Q8_0:
        words = "A merged model is in fp16 or bf16. q8_0 is a type of GGUF models."
        raise InvalidError(words, [("/type", words)])
    refuse_the_form(trained, settings)
    if settings.format is ExportFormat.GGUF_ADAPTER and (settings.type, settings.onto) != (None, Onto.ORIGINAL):
        words = "A GGUF adapter is in fp32 and has no base model in it. Leave type and onto out."
        raise InvalidError(words, [("/type", words)])
    if settings.onto is Onto.NF4 and trained.spec.get("adapter") != "qlora":
        words = f"Job {trained.id} was not trained with qlora. Merge it into the original base model."
        raise InvalidError(words, [("/onto", words)])


def refuse_the_form(trained: Job, settings: ExportSettings) -> None:
    """Raise `InvalidError` if the job's adapter has more than the form has a place for."""
    if words := no_form(trained.spec, settings.format):
        raise InvalidError(f"Job {trained.id}: {words}.", [("/format", words)])


def _spec_of(trained: Job, settings: ExportSettings) -> JobSpec:
    spec = JobSpec.model_validate(trained.spec)
    asked = {"job": trained.id, "format": settings.format, "type": settings.type, "onto": settings.onto}
    return follow_up(spec, "Export", export=ExportSpec.model_validate(asked), backend="auto")


def _refuse_large_file(ctx: Context, trained: Job, settings: ExportSettings, needed: int) -> None:
    """Raise `ConflictError` if the export is too large, or if no machine can send the one file of it."""
    if needed > MAX_EXPORT_BYTES:
        raise ConflictError(
            f"The export would have about {needed >> 30} GiB. An export on a machine may have {MAX_EXPORT_BYTES >> 30}."
        )
    most = ctx.limits.max_upload_bytes
    if (
        settings.format is not ExportFormat.GGUF
        or needed <= most
        or ctx.stores.current().name != ctx.stores.local().name
    ):
        return
    with ctx.uow() as tx:
        accounts = [each for each in tx.accounts.all() if each.member_id in (None, trained.member_id)]
    if accounts and not any(_needs_no_upload(ctx, each.provider) for each in accounts):
        raise ConflictError(
            f"The GGUF model would have about {needed / 2**30:.1f} GiB. Your machines send at most {most / 2**30:.1f} "
            "GiB in one file to this server (TRAINHOP_MAX_UPLOAD_BYTES). Choose another type or another store."
        )


def _needs_no_upload(ctx: Context, provider: str) -> bool:
    """Whether files of such a machine reach this server's disk without a request: directly, or through its provider."""
    try:
        return ctx.providers.get(provider).capabilities.shares_disk or is_offline(ctx, provider)
    except ProviderUnavailable:
        return True  # nothing is known


def _refuse_full_store(ctx: Context, needed: int) -> None:
    """Raise `ConflictError` if the files do not fit, as far as the room in the store is known."""
    store = ctx.stores.current()
    try:
        free = store.usage().free
    except StoreError:
        return
    if free is not None and free < needed + SPARE_BYTES:
        raise ConflictError(
            f"The export needs about {needed / 2**30:.1f} GiB in the store {store.name}, and {free / 2**30:.1f} GiB "
            "are free there. Make room, or use another store."
        )


def _model(ctx: Context, trained: Job, spec: JobSpec) -> BaseModel | None:
    """The base model, or None if the hub does not answer: the machine will ask it again.

    Raises `InvalidError` if the base model cannot be had any more, or if models of its type cannot be exported.
    """
    try:
        model = ctx.catalog.model(spec.base_model, token_of(ctx, trained.member_id))
    except UnavailableError:
        return None
    if model.kind and model.kind not in EXPORTABLE:
        words = not_exportable(model.kind)
        raise InvalidError(f"{model.name}: {words}.", [("/format", words)])
    return model


def _size(trained: Job, model: BaseModel | None, settings: ExportSettings) -> int | None:
    """About how many bytes the files have. None if the size of the model is not known."""
    if settings.format is ExportFormat.GGUF_ADAPTER:
        return 2 * (trained.adapter_bytes or 0)  # it may be stored in 16 bits
    if model is None or model.parameters is None:
        return None
    each = 2.0 if settings.type is None else _BYTES.get(settings.type, 2.0)
    return int(model.parameters * each)


def exports_of(ctx: Context, actor: Actor, job_id: str) -> list[tuple[MachineExport, Job]]:
    """The exports of a job that the actor may see, as `listed`."""
    with ctx.uow() as tx:
        owned_job(tx, actor, job_id)
    return listed(ctx, job_id)


def listed(ctx: Context, job_id: str) -> list[tuple[MachineExport, Job]]:
    """The exports of a job on machines, with their own jobs, newest first. Of an export, itself. No deleted ones."""
    with ctx.uow() as tx:
        own = tx.machine_exports.get(job_id)
        found: Sequence[MachineExport] = [own] if own is not None else tx.machine_exports.of_job(job_id)
        jobs = tx.jobs.get_many([each.job_id for each in found])
    return [(each, jobs[each.job_id]) for each in found if jobs[each.job_id].deleted_at is None]


def file_of(ctx: Context, actor: Actor, job_id: str, name: str) -> tuple[str, str, int, str]:
    """A file of an export by its name in the report: its store, its key, its size, its sha256.

    `job_id` is the export's own job. Raises `NotFoundError`.
    """
    for export, job in exports_of(ctx, actor, job_id):
        for file in (export.report or {}).get("files", ()) if job.id == job_id else ():
            if file["name"] == name:
                return export.store or "", (export.keys or {})[name], file["bytes"], file["sha256"]
    raise NotFoundError(f"The export {job_id} has no file {name}.")
