"""Pushes to the Hugging Face hub for the owner of a job: start, list, and the one that follows a job."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from orchestrator.domain.accounts import Actor
from orchestrator.domain.errors import ConflictError, ForbiddenError, InvalidError, KeyTakenError, NotFoundError
from orchestrator.domain.jobs import Event, Job
from orchestrator.domain.pushes import MAX_PUSHES, Push, PushState
from orchestrator.ports.repository import Transaction
from orchestrator.services.access import owned_job, require_owner
from orchestrator.services.context import Context, new_id
from orchestrator.services.hub_tokens import refuse_without_write
from worker.shared.hub_names import repo_name


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a person asks for. Without a `repo`, it is that of the job's last push, or of its file."""

    repo: str | None = None
    is_public: bool = False
    replace: bool = False


def start(ctx: Context, actor: Actor, job_id: str, wish: Wish, *, key: str | None = None) -> Push:
    """Push the adapter of the actor's finished job. A push that runs already is returned as it is.

    A failed push to the same repository is repeated under its id, so that its commit is recognised if there is one.
    Raises `InvalidError` if the actor has no token that may write there, and `ConflictError` while another push runs.
    """
    with ctx.uow() as tx:
        job = _finished(tx, actor, job_id)
        repo, is_public = _place(job, tx.pushes.of_job(job_id), wish)
    request_hash = hashlib.sha256(f"{job_id} {wish}".encode()).hexdigest()
    if key is not None and (again := _earlier(ctx, actor, key, request_hash)) is not None:
        return again
    refuse_without_write(ctx, actor.member_id, repo, "/repo")
    now = ctx.clock.now()
    try:
        with ctx.uow() as tx:
            job = _finished(tx, actor, job_id)
            push = _started(tx, job, repo, is_public=is_public, replace=wish.replace, actor=actor.name, now=now)
            if key is not None:
                tx.idempotency.add(actor.member_id, key, request_hash, {"push": push.id}, now)
            tx.jobs.save(job)
    except KeyTakenError:
        winner = _earlier(ctx, actor, key or "", request_hash)
        if winner is None:
            raise
        return winner
    return push


def push_finished(ctx: Context, tx: Transaction, job: Job) -> None:
    """Start the push that the file of a job asks for, in the transaction in which the job succeeds.

    So it exists exactly once, and whatever becomes of it, the job has succeeded. The caller saves the job.
    """
    repo = job.spec.get("hub_model_id")
    if repo is None:
        return
    now = ctx.clock.now()
    if tx.members.get_for_share(job.member_id) is None:
        words = "Its owner is no longer a member of this server."
        job.note("job.not_pushed", at=now, actor="server", reason=words, repo=repo)
        return
    is_public = not job.spec.get("hub_private", True)
    _started(tx, job, repo, is_public=is_public, replace=False, actor="server", now=now)


def listed(ctx: Context, actor: Actor, job_id: str) -> list[Push]:
    """The pushes of the actor's own job, newest first."""
    with ctx.uow() as tx:
        owned_job(tx, actor, job_id)
        return tx.pushes.of_job(job_id)


def one(ctx: Context, actor: Actor, push_id: str) -> Push:
    """A push of the actor's own job. Raises `NotFoundError` otherwise."""
    with ctx.uow() as tx:
        push = tx.pushes.get(push_id)
        job = tx.jobs.get_many([push.job_id]).get(push.job_id) if push is not None else None
        if push is None or job is None or not actor.may_see_jobs_of(job.member_id):
            raise NotFoundError(f"There is no push {push_id}.")
        require_owner(tx, actor, job.member_id, f"Push {push_id}")
    return push


def note(job: Job, push: Push, kind: str, actor: str, now: float, reason: str = "") -> None:
    """Add an event to the job, whose time of end stays as it is. The caller saves the job."""
    data = {"push": push.id, "repo": push.repo} | ({"commit": push.commit_id} if push.commit_id else {})
    job.events.append(Event(job_id=job.id, at=now, kind=kind, actor=actor, reason=reason, data=data))


def _finished(tx: Transaction, actor: Actor, job_id: str) -> Job:
    job = owned_job(tx, actor, job_id)
    if job.member_id != actor.member_id:
        raise ForbiddenError("Only the owner of a job can push its adapter, with their own Hugging Face token.")
    if job.adapter_key is None:
        raise ConflictError(f"Job {job_id} is {job.state.word} and has no adapter to push.")
    return job


def _place(job: Job, earlier: list[Push], wish: Wish) -> tuple[str, bool]:
    """The repository, and whether it may be public."""
    asked = job.spec.get("hub_model_id")
    repo = wish.repo or (earlier[0].repo if earlier else asked)
    try:
        repo = repo_name(repo or "")
    except ValueError as error:
        words = str(error) if repo else "Name the repository: OWNER/NAME on the Hugging Face hub."
        raise InvalidError(words, [("/repo", words)]) from None
    return repo, wish.is_public or (repo == asked and not job.spec.get("hub_private", True))


def _earlier(ctx: Context, actor: Actor, key: str, request_hash: str) -> Push | None:
    with ctx.uow() as tx:
        used = tx.idempotency.get(actor.member_id, key)
        if used is None:
            return None
        if used[0] != request_hash or "push" not in used[1]:
            raise ConflictError("This Idempotency-Key was used for another request. Choose a new one.")
        return tx.pushes.get(used[1]["push"])


def _started(tx: Transaction, job: Job, repo: str, *, is_public: bool, replace: bool, actor: str, now: float) -> Push:
    """The push that runs now: the one that ran, a failed one that is repeated, or a new one. The job is locked."""
    pushes, running = tx.pushes.of_job(job.id), tx.pushes.running_of_job(job.id)
    if running is not None:
        if (running.repo, running.is_public, running.replace) != (repo, is_public, replace):
            raise ConflictError(f"The adapter of job {job.id} is being pushed to {running.repo}. Wait until it ends.")
        return running
    last = next((push for push in pushes if push.repo == repo), None)
    if last is not None and last.state is PushState.FAILED:
        last.state, last.reason, last.finished_at = PushState.RUNNING, "", None
        last.attempts, last.not_before = 0, 0.0
        last.is_public, last.replace = is_public, replace
        tx.pushes.save(last)
        push = last
    else:
        if len(pushes) >= MAX_PUSHES:
            raise ConflictError(f"A job has at most {MAX_PUSHES} pushes.")
        push = Push(
            id=new_id("push", now),
            job_id=job.id,
            member_id=job.member_id,
            repo=repo,
            is_public=is_public,
            replace=replace,
            created_at=now,
        )
        tx.pushes.add(push)
    note(job, push, "job.pushing", actor, now)
    return push
