"""Members, their tokens and their accounts; pools of machines that belong to the installation."""

from __future__ import annotations

from typing import Any

from orchestrator.domain.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError
from orchestrator.domain.model import Account, Member, Role
from orchestrator.ports import Context, ProviderError, TokenInfo, Transaction
from orchestrator.services.ids import new_id
from orchestrator.services.jobs import Actor

POOLS = frozenset({"local", "slurm"})
"""Providers whose machines belong to the installation, not to a person."""


def require_admin(actor: Actor) -> None:
    """Raise `ForbiddenError` unless the actor is an admin."""
    if actor.role is not Role.ADMIN:
        raise ForbiddenError("only an admin may do this")


def add_member(ctx: Context, actor: Actor, name: str, role: Role) -> Member:
    """Let a person in."""
    require_admin(actor)
    member = Member(id=new_id("member", ctx.clock.now()), name=name, role=role, created_at=ctx.clock.now())
    with ctx.uow() as tx:
        tx.add_member(member)
    return member


def add_token(ctx: Context, actor: Actor, *, member: str, name: str, days: float | None) -> tuple[TokenInfo, str]:
    """A new token for a member (name or id), and its secret, which is shown this once."""
    now = ctx.clock.now()
    with ctx.uow() as tx:
        owner = find_member(tx, member)
        if not actor.may_see(owner.id):
            raise ForbiddenError("only an admin may make tokens for others")
        token = TokenInfo(
            id=new_id("token", now),
            member_id=owner.id,
            role=owner.role,
            name=name,
            created_at=now,
            expires_at=None if days is None else now + days * 86_400,
        )
        secret = ctx.tokens.new()
        tx.add_token(token, ctx.tokens.hash(secret))
    return token, secret


def remove_token(ctx: Context, actor: Actor, token_id: str) -> None:
    """Make a token useless."""
    with ctx.uow() as tx:
        found = [t for t in tx.tokens() if t.id == token_id and actor.may_see(t.member_id)]
        if not found:
            raise NotFoundError(f"there is no token {token_id}")
        tx.delete_token(token_id)


def list_tokens(ctx: Context, actor: Actor) -> list[TokenInfo]:
    """The actor's tokens; for an admin everybody's."""
    with ctx.uow() as tx:
        return tx.tokens(None if actor.role is Role.ADMIN else actor.member_id)


def list_members(ctx: Context) -> list[Member]:
    """Everybody on this installation."""
    with ctx.uow() as tx:
        return tx.members()


def find_member(tx: Transaction, name_or_id: str) -> Member:
    """A member by id or name; raises `NotFoundError`."""
    member = tx.member(name_or_id) or tx.member_by_name(name_or_id)
    if member is None:
        raise NotFoundError(f"there is no member {name_or_id}")
    return member


def add_account(
    ctx: Context, actor: Actor, *, provider: str, name: str, owner: str | None, config: dict[str, Any]
) -> Account:
    """Connect a member's account, or (admins) a pool. One account per member and provider is a rule of the providers."""
    try:
        ctx.providers.get(provider)
    except ProviderError as error:
        raise InvalidError(str(error), [("/provider", str(error))]) from error
    now = ctx.clock.now()
    with ctx.uow() as tx:
        if provider in POOLS:
            require_admin(actor)
            member_id = None
        else:
            member_id = find_member(tx, owner or actor.member_id).id
            if not actor.may_see(member_id):
                raise ForbiddenError("an account is connected by its owner or an admin")
        account = Account(
            id=new_id("account", now), provider=provider, member_id=member_id, name=name, config=config, created_at=now
        )
        tx.add_account(account)
    ctx.wake()
    return account


def list_accounts(ctx: Context, actor: Actor) -> list[Account]:
    """Pools, and the actor's own accounts; for an admin everybody's."""
    with ctx.uow() as tx:
        return [a for a in tx.accounts() if a.member_id is None or actor.may_see(a.member_id)]


def change_account(
    ctx: Context, actor: Actor, account_id: str, *, paused: bool | None, config: dict[str, Any] | None
) -> Account:
    """Pause or open an account, or change its settings."""
    with ctx.uow() as tx:
        account = _owned(tx, actor, account_id)
        if paused is not None:
            account.paused = paused
            account.not_before, account.note = 0.0, ""
        if config is not None:
            account.config = account.config | config
        tx.save_account(account)
    ctx.wake()
    return account


def remove_account(ctx: Context, actor: Actor, account_id: str) -> None:
    """Disconnect an account on which nothing runs."""
    with ctx.uow() as tx:
        account = _owned(tx, actor, account_id)
        _, busy = tx.live_counts()
        if busy.get(account.id):
            raise ConflictError(
                f"{account.name} has {busy[account.id]} running sessions: pause it and wait, or cancel them"
            )
        tx.delete_account(account.id)


def _owned(tx: Transaction, actor: Actor, account_id: str) -> Account:
    found = tx.account(account_id) or next((a for a in tx.accounts() if a.name == account_id), None)
    if found is None or (found.member_id is not None and not actor.may_see(found.member_id)):
        raise NotFoundError(f"there is no account {account_id}")
    if found.member_id is None:
        require_admin(actor)
    return found
