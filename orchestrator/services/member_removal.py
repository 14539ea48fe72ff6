"""Removing a person: nothing lets them in any more, and what their jobs have left stays."""

from __future__ import annotations

from itertools import count

from orchestrator.domain.errors import ConflictError, ForbiddenError, NotFoundError
from orchestrator.domain.model import Member
from orchestrator.ports.providers import Context
from orchestrator.ports.repository import Transaction
from orchestrator.services.accounts import require_admin
from orchestrator.services.jobs import Actor

JOBS_NAMED = 3
MAX_NAME = 85
"""Characters of the old name in the new one, which may have 100."""


def remove_member(ctx: Context, actor: Actor, name_or_id: str) -> None:
    """Remove a member with their tokens, that for the hub included, sessions, accounts and channels; their jobs stay, under a name that says so.

    Raises `ConflictError` while a job of theirs has not ended or a machine on one of their accounts is not cleared up, and for
    the actor, so that there always is an admin.
    """
    require_admin(actor)
    with ctx.uow() as tx:
        named = tx.member(name_or_id) or tx.member_by_name(name_or_id)
        there = {m.id: m for m in tx.lock_members(actor.member_id, named.id)} if named is not None else {}
        if named is None or named.id not in there:
            raise NotFoundError(f"there is no member {name_or_id}")
        if named.id == actor.member_id:
            raise ConflictError("nobody can remove themselves: ask another admin")
        if actor.member_id not in there:  # removed themselves since they were let in
            raise ForbiddenError("only an admin may do this")
        member = there[named.id]
        _refuse_while_needed(tx, member)
        member.name, member.removed_at = _parting_name(tx, member), ctx.clock.now()
        member.hub_token = ""
        tx.remove_member(member)


def _refuse_while_needed(tx: Transaction, member: Member) -> None:
    jobs = tx.unended_jobs(member.id)
    if jobs:
        named = ", ".join(f"{job.name} ({job.id})" for job in jobs[:JOBS_NAMED]) + ", ..." * (len(jobs) > JOBS_NAMED)
        raise ConflictError(f"{member.name} has jobs that have not ended: cancel them first, or wait: {named}")
    theirs = {account.id: account for account in tx.accounts() if account.member_id == member.id}
    for lease in tx.uncollected_leases():
        if lease.account_id in theirs:
            name = theirs[lease.account_id].name
            raise ConflictError(
                f"a machine on {name} is still being cleared up, and without the account nobody could end it: try again in a "
                "minute, or disconnect that account first"
            )


def _parting_name(tx: Transaction, member: Member) -> str:
    """One that nobody has, so that the old one is free."""
    names = (f"{member.name[:MAX_NAME]} (removed{f' {n}' if n > 1 else ''})" for n in count(1))
    return next(name for name in names if tx.member_by_name(name) is None)
