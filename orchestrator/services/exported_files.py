"""The files of an export that a machine has made, and the adapter of exports and chats, all within a transaction."""

from __future__ import annotations

from orchestrator.domain.errors import ConflictError
from orchestrator.domain.jobs import Job, Lease
from orchestrator.ports.repository import Transaction
from worker.shared.results import StoredExport


def keep(tx: Transaction, job: Job, lease: Lease, done: StoredExport, now: float) -> None:
    """Keep what a machine has made, in the transaction in which its job succeeds."""
    export = tx.machine_exports.get(job.id)
    assert export is not None, "it was written with its job"
    files = [{"name": file.name, "bytes": file.size, "sha256": file.sha256} for file in done.files]
    export.store, export.keys = lease.store, {file.name: file.key for file in done.files}
    export.report = done.report.model_dump(mode="json") | {"files": files}
    export.finished_at = now
    tx.machine_exports.save(export)
    job.head_step = job.total_steps  # its one step has no checkpoint


def refuse_unfinished(tx: Transaction, trained: Job) -> None:
    """Raise `ConflictError` while a machine may still read the adapter of a job that is to be deleted."""
    for job in tx.jobs.unended_clones(trained.id):
        if job.used_job is not None:
            does = "exports" if job.is_export else "is a chat with"
            raise ConflictError(
                f"Job {job.id} {does} the adapter of job {trained.id}. Wait until it has ended, or cancel it."
            )


def refuse_without_adapter(tx: Transaction, job: Job) -> None:
    """Raise `ConflictError` for an export or a chat that is to be retried and whose adapter was deleted."""
    used = job.used_job
    trained = tx.jobs.get(used) if used is not None else None  # locked against its deletion
    if used is not None and (trained is None or trained.adapter_key is None):
        again = "be exported again" if job.is_export else "answer again"
        raise ConflictError(f"The adapter of job {used} was deleted, so it cannot {again}.")


def discard(tx: Transaction, job: Job) -> None:
    """Give up the files of an export whose job is deleted. They are deleted in their store later."""
    export = tx.machine_exports.get(job.id)
    for stored in (export.keys or {}).values() if export is not None else ():
        tx.datasets.discard(stored, export.store if export is not None else None)
