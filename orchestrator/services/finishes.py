"""The last message of a session: its result is read back, and the job ends or its lease does."""

from __future__ import annotations

from orchestrator.domain.errors import ConflictError, InvalidError
from orchestrator.domain.jobs import Job, Lease
from orchestrator.domain.lifecycle import EndReason, LeaseState
from orchestrator.ports.repository import Transaction
from orchestrator.ports.stores import ObjectMissing, StoreError
from orchestrator.services import continuing, evaluation_results, exported_files, heads
from orchestrator.services.context import Context
from orchestrator.services.evaluation_results import Result
from orchestrator.services.evaluations import evaluate_finished
from orchestrator.services.failed_starts import Explanation, close
from orchestrator.services.leases import (
    already_ended,
    find_lease,
    held,
    last_words,
    lease_prefix,
    release_lease,
    still_held,
)
from orchestrator.services.pushes import push_finished
from orchestrator.services.stores import from_store
from worker.shared.answers_file import MAX_FILE_BYTES
from worker.shared.early_stopping import ended_early, may_end_at
from worker.shared.job_spec import JobSpec
from worker.shared.messages import Failure, Finish
from worker.shared.results import MAX_EXPORT_BYTES, ExportedAdapter, ExportedFile, StoredAnswers, StoredExport


def check_adapter(ctx: Context, message: Finish) -> None:
    """Read the adapter back from the store, outside a transaction. Raises `InvalidError` if it differs.

    Whether a job may end without one is decided in the transaction.
    """
    if message.adapter is not None and (lease := _finishing(ctx, message)) is not None:
        _check_stored(ctx, lease, "adapter", message.adapter)


def check_answers(ctx: Context, message: Finish, answers: StoredAnswers) -> Result | None:
    """Read the answers of an evaluation back from the store, outside a transaction. Raises `InvalidError`.

    None if the message is a repeated one.
    """
    if answers.size > MAX_FILE_BYTES:
        size = f"The answers have {answers.size} bytes. They may have {MAX_FILE_BYTES}."
        raise InvalidError(f"{size} Ask fewer prompts.", [("/answers/size", "is too large")])
    lease = _finishing(ctx, message)
    if lease is None:
        return None
    _check_stored(ctx, lease, "answers", answers)
    return evaluation_results.stored_answers(ctx.stores.get(lease.store), answers)


def check_export(ctx: Context, message: Finish, export: StoredExport) -> None:
    """Read the files of an export back from the store, outside a transaction. Raises `InvalidError`."""
    names = {file.name for file in export.files}
    if len(names) < len(export.files) or len({file.key for file in export.files}) < len(export.files):
        raise InvalidError("Two files of the export are the same.", [("/export/files", "must differ")])
    size = sum(file.size for file in export.files)
    if size > MAX_EXPORT_BYTES:
        words = f"The export has {size} bytes. It may have {MAX_EXPORT_BYTES}."
        raise InvalidError(words, [("/export/files", "are too large")])
    if (lease := _finishing(ctx, message)) is not None:
        for place, file in enumerate(export.files):
            _check_stored(ctx, lease, f"export/files/{place}", file)


def _finishing(ctx: Context, message: Finish) -> Lease | None:
    """The lease that ends with this message. None if it has ended with it before."""
    with ctx.uow() as tx:
        lease = find_lease(tx, message.lease)
        if already_ended(lease, message.fence, EndReason.COMPLETED):
            return None
        return still_held(tx, lease, message.fence)[0]


def _check_stored(ctx: Context, lease: Lease, name: str, said: ExportedAdapter | StoredAnswers | ExportedFile) -> None:
    if not said.key.startswith(lease_prefix(lease)):
        raise InvalidError(
            f"The file of the {name} is outside this lease's folder. Use a granted key.",
            [(f"/{name}/key", "was not granted")],
        )
    try:
        stored = ctx.stores.get(lease.store).stat(said.key)
    except ObjectMissing as error:
        raise InvalidError(
            f"The file of the {name} was not uploaded. Upload it first.", [(f"/{name}/key", "no such object")]
        ) from error
    except StoreError as error:
        raise from_store(error) from error
    if (stored.sha256, stored.size) != (said.sha256, said.size):
        raise InvalidError(
            f"The stored file of the {name} differs from the reported one. Upload it again.",
            [(f"/{name}/sha256", "differs")],
        )


def _adapter(message: Finish) -> ExportedAdapter:
    if message.adapter is None:
        raise InvalidError("The adapter is missing. Upload it before you finish the job.", [("/adapter", "is missing")])
    return message.adapter


def finish(
    ctx: Context, tx: Transaction, message: Finish, *, head_damaged: bool, answers: Result | None = None
) -> Lease | None:
    """The last message: the job is done, or cannot continue there. Repeating it changes nothing.

    Returns the lease with which the session continues, if it does.

    `check_adapter` has read the adapter of a job that is done, `check_answers` the `answers` of an evaluation.
    `head_damaged` is the result of `is_head_damaged`.
    """
    if message.failure is None:
        return _succeed(ctx, tx, message, answers)
    _fail(ctx, tx, message, message.failure, head_damaged=head_damaged)
    return None


def _succeed(ctx: Context, tx: Transaction, message: Finish, answers: Result | None) -> Lease | None:
    now = ctx.clock.now()
    lease = find_lease(tx, message.lease)
    if already_ended(lease, message.fence, EndReason.COMPLETED):
        return continuing.granted_before(tx, lease) if message.can_continue else None
    lease, job = still_held(tx, lease, message.fence)
    early = _early_end(job, message)
    if job.head_step < job.total_steps and job.used_job is None and not early:
        raise ConflictError(
            f"Only {job.head_step} of {job.total_steps} steps are committed. Commit the final checkpoint first."
        )
    _keep_result(tx, job, lease, message, answers, now)
    last_words(lease, message, now)
    may_continue = message.can_continue and lease.state is LeaseState.ACTIVE
    lease.end(LeaseState.RELEASED, EndReason.COMPLETED, at=now)
    tx.leases.save(lease)
    job.succeed(at=now, lease_id=lease.id, early=early)
    evaluation = evaluate_finished(ctx, tx, job)
    push_finished(ctx, tx, job)
    heads.prune_finished(tx, job)
    tx.jobs.save(job)
    return continuing.grant(ctx, tx, lease, evaluation, now) if may_continue and evaluation is not None else None


def _early_end(job: Job, message: Finish) -> str:
    """How a training job ended before its last step, in words. Empty if it did not, or may not end there."""
    if message.step != job.head_step or not 0 < job.head_step < job.total_steps or job.is_evaluation or job.used_job:
        return ""
    spec = JobSpec.model_validate(job.spec)
    if spec.early_stopping_patience is None or not may_end_at(spec, message.step):
        return ""
    return ended_early(spec.early_stopping_patience, message.step)


def _keep_result(tx: Transaction, job: Job, lease: Lease, message: Finish, answers: Result | None, now: float) -> None:
    if job.is_chat:  # nothing of it is kept
        job.head_step = job.total_steps
        return
    if job.is_export:
        if message.export is None:
            raise InvalidError("The export is missing. Upload its files first.", [("/export", "is missing")])
        exported_files.keep(tx, job, lease, message.export, now)
        return
    if job.is_evaluation:
        if message.answers is None or answers is None:
            missing = [("/answers", "is missing")]
            raise InvalidError("The answers are missing. Upload them before you finish the evaluation.", missing)
        evaluation_results.keep(tx, job, answers, message.answers.sha256, now)
        return
    adapter = _adapter(message)
    job.adapter_key, job.adapter_store, job.adapter_bytes = adapter.key, lease.store, adapter.size
    job.adapter_zip_sha256, job.adapter_sha256 = adapter.sha256, adapter.adapter_sha256


def _fail(ctx: Context, tx: Transaction, message: Finish, failure: Failure, *, head_damaged: bool) -> None:
    now, end = ctx.clock.now(), EndReason.FAILED
    lease = find_lease(tx, message.lease)
    if already_ended(lease, message.fence, end):
        return
    lease, job = still_held(tx, lease, message.fence)
    last_words(lease, message, now)
    changed = _rolled_back(tx, lease, job, failure, now, head_damaged=head_damaged)
    words = f"{failure.message}; {changed}" if changed else failure.message
    cause = "" if head_damaged else failure.cause  # the store's fault, not the machine's
    why = Explanation(words, cause, failure.has_remedy)
    if changed is not None:
        release_lease(tx, lease, job, LeaseState.RELEASED, end, why, at=now, actor="worker")
        return
    close(tx, lease, LeaseState.RELEASED, end, why, at=now)
    job.fail(lease.detail, at=now, actor="worker", lease_id=lease.id)
    tx.jobs.save(job)


def _rolled_back(
    tx: Transaction, lease: Lease, job: Job, failure: Failure, now: float, *, head_damaged: bool
) -> str | None:
    """What has changed about the head, in words or "" for nothing. None if no other session can succeed.

    A `cause` says that the checkpoint did not arrive, so it was not tried.
    """
    if head_damaged:
        return heads.roll_back(tx, job, now, "is damaged")
    if failure.permanent:
        return None
    if failure.bad_checkpoint is None or failure.bad_checkpoint != job.head or failure.cause:
        return ""
    return heads.not_loaded(tx, job, lease, failure.message, now)


def is_head_damaged(ctx: Context, message: Finish, sha256: str) -> bool:
    """Whether `sha256` is the head and its stored bytes differ or are missing. False if the store does not answer.

    It reads the store, so it must not run in a transaction. A worker's report alone never discards a checkpoint.
    """
    with ctx.uow() as tx:
        _, job = held(tx, message.lease, message.fence)
        head = tx.checkpoints.get(job.id, sha256)
    if head is None or head.sha256 != job.head:
        return False
    try:
        return ctx.stores.get(head.store).stat(head.key).sha256 != head.sha256
    except ObjectMissing:
        return True
    except StoreError:
        return False
