"""Use cases of links to a job's page without log-in: make one, list and revoke them, and open one."""

from __future__ import annotations

from orchestrator.domain.accounts import Actor
from orchestrator.domain.errors import ConflictError, GoneError, NotFoundError
from orchestrator.domain.jobs import Event, Job
from orchestrator.domain.shares import Share
from orchestrator.ports.repository import Transaction
from orchestrator.services.access import owned_job
from orchestrator.services.context import Context, new_id
from orchestrator.services.follow_ups import refuse_follow_up

MAX_SHARES = 50
"""Links of a job that work at the same time."""
DELETED = "The job of this link was deleted."


def create(
    ctx: Context, actor: Actor, job_id: str, *, with_samples: bool = False, days: float | None = None
) -> tuple[Share, str]:
    """A new link to a page of the actor's job, and its secret, which is shown only once.

    It works for `days`, or until it is revoked. Raises `ConflictError` for a job that follows another one, and
    if the job has `MAX_SHARES` links.
    """
    secret, now = ctx.tokens.new(), ctx.clock.now()
    with ctx.uow() as tx:
        job = owned_job(tx, actor, job_id)
        refuse_follow_up(job, "Share")  # it has no curve
        if sum(not share.ended(now) for share in tx.shares.of_job(job_id)) >= MAX_SHARES:
            raise ConflictError(f"A job has at most {MAX_SHARES} links. Revoke one first.")
        share = Share(
            id=new_id("share", now),
            job_id=job_id,
            member_id=actor.member_id,
            secret_hash=ctx.tokens.hash(secret),
            with_samples=with_samples,
            created_at=now,
            expires_at=None if days is None else now + days * 86_400,
        )
        tx.shares.add(share)
        _note(tx, job, share, "job.shared", actor, now)
    return share, secret


def listed(ctx: Context, actor: Actor, job_id: str) -> list[tuple[Share, str]]:
    """The links of the actor's job with the names of those who made them, newest first, also those that ended."""
    with ctx.uow() as tx:
        owned_job(tx, actor, job_id)
    return of_job(ctx, job_id)


def of_job(ctx: Context, job_id: str) -> list[tuple[Share, str]]:
    """The same for a caller who has checked whose job it is."""
    with ctx.uow() as tx:
        found = tx.shares.of_job(job_id)
        makers = {share.member_id: tx.members.get(share.member_id) for share in found}
    return [(share, maker.name if (maker := makers[share.member_id]) else "") for share in found]


def revoke(ctx: Context, actor: Actor, job_id: str, share_id: str) -> None:
    """End a link at once. A link that ended already stays as it is. Raises `NotFoundError`."""
    now = ctx.clock.now()
    with ctx.uow() as tx:
        job = owned_job(tx, actor, job_id)
        share = tx.shares.get(share_id)
        if share is None or share.job_id != job_id:
            raise NotFoundError(f"Job {job_id} has no link {share_id}.")
        if share.revoked_at is None:
            share.revoked_at = now
            tx.shares.save(share)
            _note(tx, job, share, "job.share_revoked", actor, now)


def open_link(ctx: Context, secret: str) -> Share:
    """The link with this secret. Raises `NotFoundError` for an unknown one, and `GoneError` for one that has ended."""
    with ctx.uow() as tx:
        share = tx.shares.get_by_hash(ctx.tokens.hash(secret))
        job = tx.jobs.get_many([share.job_id]).get(share.job_id) if share is not None else None
    if share is None or job is None:
        raise NotFoundError("This link does not work. Ask the person who sent it for a new one.")
    if ended := share.ended(ctx.clock.now()) or (DELETED if job.deleted_at is not None else ""):
        raise GoneError(ended)
    return share


def _note(tx: Transaction, job: Job, share: Share, kind: str, actor: Actor, now: float) -> None:
    """Add an event. The job's time of end stays as it is."""
    job.events.append(Event(job_id=job.id, at=now, kind=kind, actor=actor.name, data={"share": share.id}))
    tx.jobs.save(job)
