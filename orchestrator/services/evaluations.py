"""Start an evaluation: a job that begins with a checkpoint of a trained job and answers prompts with it.

It keeps everything of the trained job's file, so that its model and its rows are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import replace

from orchestrator.domain.accounts import Actor, Role
from orchestrator.domain.errors import ConflictError, ForbiddenError, KeyTakenError, TrainhopError
from orchestrator.domain.evaluations import Evaluation
from orchestrator.domain.jobs import Checkpoint, Event, Job
from orchestrator.domain.lifecycle import JobState
from orchestrator.ports.repository import Transaction
from orchestrator.services import benchmark_leaks, evaluation_prompts, evaluation_times, verdicts
from orchestrator.services.access import owned_job, seen_job
from orchestrator.services.clones import kept
from orchestrator.services.context import Context
from orchestrator.services.data_gate import refuse_leaks
from orchestrator.services.evaluation_judges import need_with_judge
from orchestrator.services.follow_ups import refuse_follow_up
from orchestrator.services.jobs import Ready, Submission, earlier, job_of_winner, notes_of, queue
from orchestrator.services.verdicts import AuditOfData
from worker.shared.evaluation_spec import EvaluationSpec
from worker.shared.job_spec import JobSpec
from worker.shared.memory_estimate import Need


def evaluate(
    ctx: Context,
    actor: Actor,
    job_id: str,
    settings: EvaluationSpec,
    *,
    checkpoint: str | None = None,
    accept_findings: Collection[str] = (),
    key: str | None = None,
) -> Submission:
    """Queue an evaluation of a job that the actor may see, at the checkpoint with this sha256 or the newest one.

    It belongs to the job's owner, whoever starts it, so that who may read the job may read it. It is the actor's if
    that owner has left. With the same `key` it is queued once. Prompts and tasks that are training rows refuse it,
    except for the checks in `accept_findings` and in the job's file.

    Raises `InvalidError` or `ConflictError` with one sentence if it cannot be evaluated like this.
    """
    with ctx.uow() as tx:
        trained = owned_job(tx, actor, job_id)
    request = f"{job_id} {checkpoint} {settings.model_dump_json()}"
    if accept_findings:
        request += f" {sorted(accept_findings)}"
    request_hash = hashlib.sha256(request.encode()).hexdigest()
    if key is not None and (again := earlier(ctx, actor, key, request_hash)) is not None:
        return Submission(job=again, is_new=False, notes=notes_of(ctx, again.id))
    refuse_follow_up(trained, "Evaluate")
    spec = JobSpec.model_validate(trained.spec)
    pinned = evaluation_prompts.pinned(ctx, actor.member_id, spec, settings)
    accepted = {*spec.accept_findings, *accept_findings}
    leaks = benchmark_leaks.notes(ctx, spec, pinned, ctx.checks.plan_wait_s if ctx.checks else 0.0)
    ready = _ready(trained, spec, pinned, key, request_hash, leaks)
    ready = replace(ready, accepted=refuse_leaks(ctx, ready.spec, accepted))
    try:
        with ctx.uow() as tx:
            trained = owned_job(tx, actor, job_id)  # locked: it cannot prune the checkpoint that the evaluation needs
            begin = _checkpoint(tx, trained, checkpoint)
            owner = trained.member_id if tx.members.get_for_share(trained.member_id) is not None else actor.member_id
            job = _queued(ctx, tx, actor, ready, trained, begin, owner)
            tx.jobs.save(trained)
    except KeyTakenError:
        winner = job_of_winner(ctx, actor, ready)
        return Submission(job=winner, is_new=False, notes=notes_of(ctx, winner.id))
    ctx.wake()
    return Submission(job=job, is_new=True, notes=ready.notes)


def evaluate_finished(ctx: Context, tx: Transaction, trained: Job) -> Job | None:
    """Queue the evaluation that the file of a job asks for, in the transaction in which the job succeeds.

    So it exists exactly once. It is None if the job asks for none, or if it cannot be made, which an event then says.
    The caller saves the job.
    """
    if trained.spec.get("evaluate") is None:  # before the whole file is read: most jobs ask for none
        return None
    spec = JobSpec.model_validate(trained.spec)
    assert spec.evaluate is not None
    by_server = Actor(member_id=trained.member_id, name="server", role=Role.MEMBER)
    try:
        if tx.members.get_for_share(trained.member_id) is None:
            raise ForbiddenError("Its owner is no longer a member of this server.")
        begin = _checkpoint(tx, trained, None)
        return _queued(ctx, tx, by_server, _ready(trained, spec, spec.evaluate), trained, begin, trained.member_id)
    except TrainhopError as error:  # the training is done, whatever became of the prompts
        trained.note("job.not_evaluated", at=ctx.clock.now(), actor="server", reason=str(error))
        return None


def _queued(
    ctx: Context, tx: Transaction, actor: Actor, ready: Ready, trained: Job, begin: Checkpoint, owner: str
) -> Job:
    # Its units are counted from the evaluated checkpoint, which is its step 0.
    job = queue(ctx, tx, actor, ready, cloned_from=trained.id, begin=replace(begin, step=0), owner=owner)
    tx.evaluations.add(_evaluation(job, trained, begin, ready.spec))
    data = {"job": job.id, "step": begin.step, "sha256": begin.sha256}
    trained.events.append(
        Event(job_id=trained.id, at=job.created_at, kind="job.evaluated", actor=actor.name, data=data)
    )
    return job


def evaluations_of(ctx: Context, actor: Actor, job_id: str) -> list[tuple[Evaluation, Job]]:
    """The evaluations of a job that the actor may see, as `listed`."""
    with ctx.uow() as tx:
        seen_job(tx, actor, job_id)
    return listed(ctx, job_id)


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
    trained: Job,
    spec: JobSpec,
    settings: EvaluationSpec,
    key: str | None = None,
    request_hash: str = "",
    leaks: tuple[str, ...] = (),
) -> Ready:
    few = evaluation_prompts.notes(spec, settings)
    spec = evaluation_times.spec_of(spec, settings)
    return Ready(
        spec=spec,
        as_json=spec.model_dump(mode="json"),
        need=need_with_judge(Need(gpu_bytes=trained.gpu_bytes, host_bytes=trained.host_bytes), settings),
        notes=(*few, *leaks),
        accepted=(),
        key=key,
        request_hash=request_hash,
    )
