"""Exports of adapters on the server's own computer, one at a time. Their folders are the only record of them.

A server that is killed loses the exports that had not ended. The next one removes what they left.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from orchestrator.domain.accounts import Actor
from orchestrator.domain.errors import ConflictError, NotFoundError, UnavailableError
from orchestrator.domain.exports import Export, ExportFormat, ExportSettings, ExportState, Onto, WeightType
from orchestrator.domain.jobs import Job
from orchestrator.ports.exports import ExportRequest, NotExported
from orchestrator.ports.stores import StoreError
from orchestrator.services.access import owned_job
from orchestrator.services.context import Context
from orchestrator.services.machine_exports import refuse_the_form
from orchestrator.services.running_exports import WORK, Key, RunningExports, Task
from orchestrator.services.stored_adapters import unpack_adapter
from worker.shared.adapter_archive import ArchiveError
from worker.shared.files import temporary_folder
from worker.shared.job_spec import JobSpec

log = structlog.get_logger()

REPORT = "trainhop-export.json"
MAX_REPORT = 1 << 20
KEPT_S = 7 * 86_400.0


def missing(ctx: Context) -> str:
    """Why this server cannot export, as one sentence. Empty if it can."""
    return "This server makes no exports." if ctx.exports is None else ctx.exports.exporter.missing()


def start(ctx: Context, actor: Actor, job_id: str, settings: ExportSettings) -> Export:
    """Export the adapter of a finished job on this server. An export with these settings that runs already is that one.

    Raises `ConflictError` for a job without an adapter, a format that exists, and a member with an export under way.
    """
    running = _running(ctx)
    with ctx.uow() as tx:
        job = owned_job(tx, actor, job_id)
    if reason := running.exporter.missing():
        raise ConflictError(reason)
    if job.adapter_key is None:
        raise ConflictError(f"Job {job_id} has no adapter that can be exported. Wait until it has succeeded.")
    refuse_the_form(job, settings)
    key = (job_id, settings.format)
    with running.lock:
        record = _of_key(running, key)
        if record is not None and not record.state.is_final and record.settings == settings:
            return record
        _refuse(running, actor, record)
        made = Export(job_id=job_id, member_id=actor.member_id, settings=settings, at=ctx.clock.now())
        running.tasks[key] = task = Task(made)
        running.pool.submit(_work, ctx, running, task, job)
    return made


def _refuse(running: RunningExports, actor: Actor, record: Export | None) -> None:
    if record is not None and record.state is not ExportState.FAILED:
        raise ConflictError(
            f"Job {record.job_id} has an export as {record.settings.format} already. Remove that one first."
        )
    waiting = [task.export for task in running.tasks.values() if not task.export.state.is_final]
    mine = next((each for each in waiting if each.member_id == actor.member_id), None)
    if mine is not None:
        raise ConflictError(f"Your export of job {mine.job_id} is still {mine.state}. Wait until it has ended.")
    if len(waiting) >= running.most_waiting:
        raise UnavailableError(f"{running.most_waiting} exports are waiting on this server. Try again later.")


def exports_of(ctx: Context, actor: Actor, job_id: str) -> list[Export]:
    """The exports of a job on this server, by format."""
    with ctx.uow() as tx:
        owned_job(tx, actor, job_id)
    return listed(ctx, job_id)


def listed(ctx: Context, job_id: str) -> list[Export]:
    """The exports of a job that the caller may see."""
    if ctx.exports is None:
        return []
    return [found for form in ExportFormat if (found := _of_key(ctx.exports, (job_id, form))) is not None]


def find(ctx: Context, actor: Actor, job_id: str, form: ExportFormat) -> Export:
    """One export. Raises `NotFoundError`."""
    found = next((each for each in exports_of(ctx, actor, job_id) if each.settings.format is form), None)
    if found is None:
        raise NotFoundError(f"Job {job_id} has no export as {form} on this server.")
    return found


def remove(ctx: Context, actor: Actor, job_id: str, form: ExportFormat) -> None:
    """Cancel an export, or delete its files. Raises `NotFoundError`."""
    find(ctx, actor, job_id, form)
    _running(ctx).forget((job_id, form))


def file_of(ctx: Context, actor: Actor, job_id: str, form: ExportFormat, name: str) -> tuple[Path, str]:
    """A file of an export by its name in the report, and its sha256. Raises `NotFoundError`."""
    found = find(ctx, actor, job_id, form)
    path = _running(ctx).place((job_id, form)) / name
    entry = next((each for each in found.report.get("files", ()) if each["name"] == name), None)
    if entry is None or not path.is_file():
        raise NotFoundError(f"The export of job {job_id} as {form} has no file {name}.")
    return path, entry["sha256"]


def tidy(ctx: Context) -> None:
    """Remove exports that are older than a week, and failures that nobody will read any more."""
    if (running := ctx.exports) is None:
        return
    oldest = ctx.clock.now() - KEPT_S
    for folder in running.folder.glob("job-*"):
        for form in ExportFormat:
            record = _of_key(running, (folder.name, form))
            if record is not None and record.state.is_final and record.at < oldest:
                running.forget((folder.name, form))
    with running.lock:
        for key, task in list(running.tasks.items()):
            if task.export.state is ExportState.FAILED and task.export.at < oldest:
                del running.tasks[key]


def _running(ctx: Context) -> RunningExports:
    if ctx.exports is None:
        raise ConflictError(missing(ctx))
    return ctx.exports


def _of_key(running: RunningExports, key: Key) -> Export | None:
    with running.lock:
        task = running.tasks.get(key)
    if task is not None:
        return task.export
    report = _report_in(running.place(key))
    if report is None:
        return None
    return Export(
        job_id=key[0],
        settings=_settings(key[1], report),
        at=(running.place(key) / REPORT).stat().st_mtime,
        state=ExportState.SUCCEEDED,
        report=report,
    )


def _report_in(folder: Path) -> dict[str, Any] | None:
    path = folder / REPORT
    try:
        if path.stat().st_size > MAX_REPORT:
            return None
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _settings(form: ExportFormat, report: dict[str, Any]) -> ExportSettings:
    kind = None if form is ExportFormat.GGUF_ADAPTER else WeightType(report["type"])
    return ExportSettings(format=form, type=kind, onto=Onto(report["onto"] or Onto.ORIGINAL))


def _work(ctx: Context, running: RunningExports, task: Task, job: Job) -> None:
    """One export in the thread of exports. Whatever happens is in its record."""
    key = (job.id, task.export.settings.format)
    try:
        if not task.is_forgotten:
            task.export = replace(task.export, state=ExportState.RUNNING, doing="fetching the adapter")
            _export(ctx, running, task, job)
    except (NotExported, StoreError, ArchiveError) as error:
        task.export = replace(task.export, state=ExportState.FAILED, doing=str(error))
    except Exception:
        log.exception("an export failed")
        words = "The export failed. The server's log says why."
        task.export = replace(task.export, state=ExportState.FAILED, doing=words)
    with ctx.uow() as tx:
        current = tx.jobs.get(job.id)
    with running.lock:
        task.is_forgotten |= current is None or current.deleted_at is not None
        if task.is_forgotten:
            if running.tasks.get(key) is task:  # not one that was asked for meanwhile
                del running.tasks[key]
            shutil.rmtree(running.place(key), ignore_errors=True)
        elif task.export.state is ExportState.RUNNING:
            del running.tasks[key]  # its folder is the record now


def _export(ctx: Context, running: RunningExports, task: Task, job: Job) -> None:
    settings = task.export.settings
    out = running.place((job.id, settings.format))
    out.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(WORK, running.folder) as folder:
        request = ExportRequest(
            adapter=unpack_adapter(ctx, job, folder),
            base=JobSpec.model_validate(job.spec).base_model,
            out=out,
            settings=settings,
            out_name=f"{job.id}-{settings.format}",
            adapter_name=f"{job.id}-adapter",
            spare_bytes=running.spare_bytes,
        )

        def say(step: str) -> None:
            task.export = replace(task.export, doing=_without_folder(running, step))

        try:
            running.exporter.export(request, say, lambda: running.stopping.is_set() or task.is_forgotten)
        except NotExported as error:
            raise NotExported(_without_folder(running, str(error))) from error


def _without_folder(running: RunningExports, text: str) -> str:
    """Members need not know where the server has its files."""
    return text.replace(f"{running.folder}/", "").replace(str(running.folder), "the server's folder of exports")
