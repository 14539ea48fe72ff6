"""Start an evaluation: a job that begins with a checkpoint of a trained job and answers prompts with it.

It keeps everything of the trained job's file, so that its model and its rows are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from orchestrator.domain.accounts import Actor
from orchestrator.domain.errors import ConflictError, InvalidError, KeyTakenError
from orchestrator.domain.evaluations import Evaluation
from orchestrator.domain.jobs import Checkpoint, Event, Job
from orchestrator.domain.lifecycle import JobState
from orchestrator.ports.repository import Transaction
from orchestrator.services import verdicts
from orchestrator.services.clones import kept
from orchestrator.services.context import Context
from orchestrator.services.datasets import resolve_dataset
from orchestrator.services.evaluation_tasks import pinned_tasks
from orchestrator.services.jobs import Ready, Submission, earlier, job_of_winner, notes_of, owned, queue
from orchestrator.services.verdicts import AuditOfData
from worker.shared.job_spec import LEAST_PROMPTS, MEASURES, DatasetSpec, EvaluationSpec, JobSpec, RowFormat
from worker.shared.memory_estimate import Need

_WITHOUT_PROMPTS = RowFormat.TEXT


def evaluate(
    ctx: Context,
    actor: Actor,
    job_id: str,
    settings: EvaluationSpec,
    *,
    checkpoint: str | None = None,
    key: str | None = None,
) -> Submission:
    """Queue an evaluation of a job that the actor may see, at the checkpoint with this sha256 or the newest one.

    With the same `key` it is queued once.

    Raises `InvalidError` or `ConflictError` with one sentence if it cannot be evaluated like this.
    """
    with ctx.uow() as tx:
        trained = owned(tx, actor, job_id)
    request = f"{job_id} {checkpoint} {settings.model_dump_json()}"
    request_hash = hashlib.sha256(request.encode()).hexdigest()
    if key is not None and (again := earlier(ctx, actor, key, request_hash)) is not None:
        return Submission(job=again, is_new=False, notes=notes_of(ctx, again.id))
    if trained.is_evaluation:
        raise ConflictError(f"Job {job_id} is an evaluation itself. Evaluate the job that it evaluates.")
    ready = _ready(ctx, actor, trained, settings, key, request_hash)
    try:
        with ctx.uow() as tx:
            trained = owned(tx, actor, job_id)  # locked: it cannot prune the checkpoint that the evaluation needs
            begin = _checkpoint(tx, trained, checkpoint)
            # Its units are counted from the evaluated checkpoint, which is its step 0.
            job = queue(ctx, tx, actor, ready, cloned_from=trained.id, begin=replace(begin, step=0))
            tx.evaluations.add(_evaluation(job, trained, begin, ready.spec))
            data = {"job": job.id, "step": begin.step, "sha256": begin.sha256}
            trained.events.append(
                Event(job_id=trained.id, at=job.created_at, kind="job.evaluated", actor=actor.name, data=data)
            )
            tx.jobs.save(trained)
    except KeyTakenError:
        winner = job_of_winner(ctx, actor, ready)
        return Submission(job=winner, is_new=False, notes=notes_of(ctx, winner.id))
    ctx.wake()
    return Submission(job=job, is_new=True, notes=ready.notes)


def evaluations_of(ctx: Context, actor: Actor, job_id: str) -> list[tuple[Evaluation, Job]]:
    """The evaluations of a job as `listed`, without those that the actor may not see."""
    with ctx.uow() as tx:
        owned(tx, actor, job_id)
    return [(each, job) for each, job in listed(ctx, job_id) if actor.may_see(each.owner)]


def listed(ctx: Context, job_id: str) -> list[tuple[Evaluation, Job]]:
    """The evaluations of a job with their own jobs, newest first. Of an evaluation, itself. Without deleted ones."""
    with ctx.uow() as tx:
        own = tx.evaluations.get(job_id)
        found = [own] if own is not None else tx.evaluations.of_job(job_id)
        jobs = tx.jobs.get_many([each.job_id for each in found])
    return [(each, jobs[each.job_id]) for each in found if jobs[each.job_id].deleted_at is None]


def audits_of(ctx: Context, jobs: Sequence[Job]) -> dict[str, tuple[AuditOfData, ...]]:
    """What is known of the data behind each evaluation, by the id of its job."""
    with ctx.uow() as tx:
        return {job.id: verdicts.audits_of(tx, job) for job in jobs}


def _checkpoint(tx: Transaction, trained: Job, sha256: str | None) -> Checkpoint:
    if sha256 is None and trained.head is None:
        raise ConflictError(f"Job {trained.id} has no checkpoint to evaluate. Wait until it has saved one.")
    return kept(tx, trained, sha256 or trained.head or "")


def _evaluation(job: Job, trained: Job, begin: Checkpoint, spec: JobSpec) -> Evaluation:
    # The adapter's file is that of the last checkpoint. An earlier one has no such file.
    is_whole = trained.state is JobState.SUCCEEDED and begin.sha256 == trained.head
    return Evaluation(
        job_id=job.id,
        trained_job=trained.id,
        owner=job.member_id,
        checkpoint_sha256=begin.sha256,
        adapter_sha256=trained.adapter_sha256 if is_whole else None,
        settings=spec.model_dump(mode="json")["evaluation"],
        created_at=job.created_at,
    )


def _ready(
    ctx: Context, actor: Actor, trained: Job, settings: EvaluationSpec, key: str | None, request_hash: str
) -> Ready:
    spec = JobSpec.model_validate(trained.spec)
    prompts = _prompts(ctx, actor, spec, settings.prompts)
    tasks = pinned_tasks(ctx, actor.member_id, settings.tasks)
    spec = spec.model_copy(
        update={
            "name": f"Evaluation of {spec.name}"[:200],
            "evaluation": settings.model_copy(update={"prompts": prompts, "tasks": tasks, "measures": MEASURES}),
            "sample_prompts": (),
            "deadline": None,
            "priority": min(0, spec.priority),
        }
    )
    count = min(settings.max_prompts, spec.eval_rows if prompts is None else prompts.rows or 0)
    few = (
        (f"There are only {count} prompts. A verdict needs at least {LEAST_PROMPTS}, and 100 are better.",)
        if count < LEAST_PROMPTS
        else ()
    )
    return Ready(
        spec=spec,
        as_json=spec.model_dump(mode="json"),
        need=Need(gpu_bytes=trained.gpu_bytes, host_bytes=trained.host_bytes),
        notes=few,
        accepted=(),
        key=key,
        request_hash=request_hash,
    )


def _prompts(ctx: Context, actor: Actor, spec: JobSpec, asked: DatasetSpec | None) -> DatasetSpec | None:
    """The file of prompts with its bytes pinned. None if the validation rows are asked, of which there must be some."""
    if asked is None:
        _refuse_plain_text(spec.datasets, "/prompts")
        if spec.eval_rows == 0:
            raise InvalidError(
                "The job has no validation rows to take prompts from. Give a file of prompts.",
                [("/prompts", "is needed, because the job has no validation rows")],
            )
        return None
    try:
        found = resolve_dataset(ctx, actor.member_id, asked, 0)
    except InvalidError as error:
        raise InvalidError(str(error), [("/prompts/path", str(error))]) from error
    _refuse_plain_text((found,), "/prompts/type")
    return found


def _refuse_plain_text(datasets: Sequence[DatasetSpec], pointer: str) -> None:
    if all(dataset.type is _WITHOUT_PROMPTS for dataset in datasets):
        raise InvalidError(
            "Rows of plain text have no prompts. Give a file of prompts with conversations, or with prompt and "
            "completion.",
            [(pointer, "are rows of plain text")],
        )
