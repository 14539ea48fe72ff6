"""Set up an empty installation: its admin, the admin's token, and the pool of this computer."""

from __future__ import annotations

from pathlib import Path

import structlog

from orchestrator.domain.accounts import Account, Member, Role, Team, Token
from orchestrator.ports.repository import Transaction
from orchestrator.services.context import Context, new_id
from worker.shared.files import create_once

log = structlog.get_logger()


def first_start(ctx: Context, token_file: Path, *, slots: int, session_s: float) -> None:
    """Add what is missing of the three. The pool runs `slots` sessions at once, each for at most `session_s` seconds.

    Without a driver for this computer there is no pool. Later starts only create a missing token file again. The token
    in an existing file may have been revoked on purpose.
    """
    with ctx.uow() as tx:
        admin = next((m for m in tx.members.all() if m.role is Role.ADMIN), None)
        is_new = admin is None
        if admin is None:
            now = ctx.clock.now()
            admin = Member(id=new_id("member", now), name="admin", role=Role.ADMIN, created_at=now)
            tx.members.add(admin)
            tx.team.save(Team(everyone_sees_jobs=True))
        is_new |= create_once(token_file, ctx.tokens.new() + "\n")
        _add_token(ctx, tx, admin, token_file, is_new=is_new)
        _add_pool(ctx, tx, {"slots": slots, "session_s": session_s})


def _add_token(ctx: Context, tx: Transaction, admin: Member, token_file: Path, *, is_new: bool) -> None:
    hashed = ctx.tokens.hash(token_file.read_text().strip())
    if tx.tokens.get_by_hash(hashed) is not None:
        return
    if not is_new:
        log.warning("this token was revoked; delete the file to get a new one at the next start", file=str(token_file))
        return
    now = ctx.clock.now()
    token = Token(id=new_id("token", now), member_id=admin.id, role=Role.ADMIN, name="first", created_at=now)
    tx.tokens.add(token, hashed)


def providers_here(ctx: Context) -> list[str]:
    """The providers whose machines are this computer. Drivers that did not load are left out."""
    return [e.name for e in ctx.providers.entries() if e.provider and e.provider.capabilities.this_computer]


def _add_pool(ctx: Context, tx: Transaction, config: dict[str, float]) -> None:
    providers = providers_here(ctx)
    if not providers or any(account.provider in providers for account in tx.accounts.all()):
        return
    now, name = ctx.clock.now(), "this-computer"
    pool = Account(
        id=new_id("account", now), provider=providers[0], member_id=None, name=name, config=config, created_at=now
    )
    tx.accounts.add(pool)
