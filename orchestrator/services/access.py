"""Permissions: admins may do everything, members may use what is their own.

All members may see the jobs of others if the team's setting says so. To see a job is not to use it.
"""

from __future__ import annotations

from orchestrator.domain.accounts import Actor, Member, Role
from orchestrator.domain.errors import ForbiddenError, NotFoundError
from orchestrator.domain.jobs import Job
from orchestrator.ports.repository import Transaction


def require_admin(actor: Actor) -> None:
    """Raise `ForbiddenError` unless the actor is an admin."""
    if actor.role is not Role.ADMIN:
        raise ForbiddenError("Only an admin can do this. Ask an admin.")


def find_member(tx: Transaction, name_or_id: str) -> Member:
    """A member by id or name, locked in the transaction. Raises `NotFoundError`."""
    member = tx.members.get(name_or_id) or tx.members.get_by_name(name_or_id)
    held = tx.members.get_for_share(member.id) if member is not None else None
    if held is None:
        raise NotFoundError(f"There is no member {name_or_id}. List them with `trainhop members ls`.")
    return held


def find_served_member(tx: Transaction, actor: Actor, name_or_id: str, refusal: str) -> Member:
    """A member for whom the actor may act: the actor, or for an admin any member.

    For others it raises `ForbiddenError` with the words of `refusal`, which do not reveal which members there are.
    """
    if actor.role is not Role.ADMIN and name_or_id not in (actor.member_id, actor.name):
        raise ForbiddenError(refusal)
    return find_member(tx, name_or_id)


def not_yours(what: str, owner: str) -> str:
    """The words that refuse an action on what belongs to a colleague."""
    return f"{what} belongs to {owner}. Only {owner} or an admin can do this."


def require_owner(tx: Transaction, actor: Actor, owner_id: str, what: str) -> None:
    """Raise `ForbiddenError` with the owner's name unless the actor is the owner or an admin."""
    if not actor.may_see(owner_id):
        owner = tx.members.get(owner_id)
        raise ForbiddenError(not_yours(what, owner.name if owner is not None else "another member"))


def seen_job(tx: Transaction, actor: Actor, job_id: str) -> Job:
    """The job, locked, if the actor may see it. Otherwise raises `NotFoundError`."""
    job = tx.jobs.get(job_id)
    if job is None or job.deleted_at is not None or not actor.may_see_jobs_of(job.member_id):
        raise NotFoundError(f"There is no job {job_id}.")
    return job


def owned_job(tx: Transaction, actor: Actor, job_id: str) -> Job:
    """The job, locked, for an action of its owner or an admin. Raises as `seen_job` and `require_owner`."""
    job = seen_job(tx, actor, job_id)
    require_owner(tx, actor, job.member_id, f"Job {job_id}")
    return job
