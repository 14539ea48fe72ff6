"""Members and their API tokens. A removed member's jobs stay."""

from __future__ import annotations

import unicodedata
from itertools import count

from orchestrator.domain.accounts import Actor, Member, Role, Token
from orchestrator.domain.errors import ConflictError, ForbiddenError, NotFoundError
from orchestrator.ports.repository import Transaction
from orchestrator.services.access import find_served_member, require_admin
from orchestrator.services.context import Context, new_id

JOBS_NAMED = 3
MAX_NAME = 85
"""Characters of the old name that the new one keeps. A name may have 100."""


def add_member(ctx: Context, actor: Actor, name: str, role: Role) -> Member:
    """Add a member. Raises `ConflictError` if another one has a name that looks the same."""
    require_admin(actor)
    member = Member(id=new_id("member", ctx.clock.now()), name=name, role=role, created_at=ctx.clock.now())
    with ctx.uow() as tx:
        alike = next((m.name for m in tx.members.all() if _folded(m.name) == _folded(name)), None)
        if alike is not None:
            raise ConflictError(f"There is already a member named {alike}. Choose another name.")
        tx.members.add(member)
    return member


def _folded(name: str) -> str:
    """The name in a form that is equal for names that people would confuse."""
    return unicodedata.normalize("NFKC", name).casefold()


def add_token(ctx: Context, actor: Actor, *, member: str, name: str, days: float | None) -> tuple[Token, str]:
    """A new token for a member (name or id), and its secret, which is shown only once."""
    now = ctx.clock.now()
    with ctx.uow() as tx:
        owner = find_served_member(
            tx, actor, member, "Only an admin can create tokens for other members. Ask an admin."
        )
        token = Token(
            id=new_id("token", now),
            member_id=owner.id,
            role=owner.role,
            name=name,
            created_at=now,
            expires_at=None if days is None else now + days * 86_400,
        )
        secret = ctx.tokens.new()
        tx.tokens.add(token, ctx.tokens.hash(secret))
    return token, secret


def remove_token(ctx: Context, actor: Actor, token_id: str) -> Token:
    """Revoke a token, and return it."""
    with ctx.uow() as tx:
        matching = [t for t in tx.tokens.all() if t.id == token_id and actor.may_see(t.member_id)]
        if not matching:
            raise NotFoundError(f"There is no token {token_id}. List them with `trainhop tokens ls`.")
        tx.tokens.delete(token_id)
    return matching[0]


def list_tokens(ctx: Context, actor: Actor) -> list[Token]:
    """The actor's tokens. For an admin, everyone's."""
    with ctx.uow() as tx:
        return tx.tokens.all(None if actor.role is Role.ADMIN else actor.member_id)


def list_members(ctx: Context) -> list[Member]:
    """All members of this installation."""
    with ctx.uow() as tx:
        return tx.members.all()


def remove_member(ctx: Context, actor: Actor, name_or_id: str) -> None:
    """Remove a member with their tokens (including the hub token), logins, accounts and channels.

    Their jobs stay, under a name that says that the member was removed.

    Raises `ConflictError` while a job of theirs has not ended, or while a machine on one of their accounts is not
    cleared up. Also raises it for the actor, so that there is always an admin.
    """
    require_admin(actor)
    with ctx.uow() as tx:
        named = tx.members.get(name_or_id) or tx.members.get_by_name(name_or_id)
        there = {m.id: m for m in tx.members.get_for_update(actor.member_id, named.id)} if named is not None else {}
        if named is None or named.id not in there:
            raise NotFoundError(f"There is no member {name_or_id}. List them with `trainhop members ls`.")
        if named.id == actor.member_id:
            raise ConflictError("You cannot remove yourself. Ask another admin.")
        if actor.member_id not in there:  # the actor was removed after signing in
            raise ForbiddenError("Only an admin can do this. Ask an admin.")
        member = there[named.id]
        _refuse_while_needed(tx, member)
        member.name, member.removed_at = _parting_name(tx, member), ctx.clock.now()
        member.hub_token = ""
        tx.members.remove(member)


def _refuse_while_needed(tx: Transaction, member: Member) -> None:
    jobs = tx.jobs.unended(member.id)
    if jobs:
        named = ", ".join(f"{job.name} ({job.id})" for job in jobs[:JOBS_NAMED]) + ", ..." * (len(jobs) > JOBS_NAMED)
        raise ConflictError(f"{member.name} has unfinished jobs. Cancel them first, or wait until they end: {named}")
    theirs = {account.id: account for account in tx.accounts.all() if account.member_id == member.id}
    for lease in tx.leases.uncollected():
        if lease.account_id in theirs:
            name = theirs[lease.account_id].name
            raise ConflictError(
                f"A session on {name} is still being cleaned up, which needs the account. Try again in a "
                "minute, or disconnect the account first."
            )


def _parting_name(tx: Transaction, member: Member) -> str:
    """A name that no member has, so that the old one is free."""
    names = (f"{member.name[:MAX_NAME]} (removed{f' {n}' if n > 1 else ''})" for n in count(1))
    return next(name for name in names if tx.members.get_by_name(name) is None)
