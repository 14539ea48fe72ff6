"""Raters of a blind comparison: their links, and how a browser becomes theirs. Secrets are kept as hashes."""

from __future__ import annotations

import hmac

from orchestrator.domain.accounts import Actor
from orchestrator.domain.comparisons import BlindComparison, Rater
from orchestrator.domain.errors import ConflictError, NotFoundError
from orchestrator.ports.repository import Transaction
from orchestrator.services.comparisons import comparison_of
from orchestrator.services.context import Context, new_id

MAX_RATERS = 100
GONE = "This link does not work. Ask the person who sent it for a new one."
USED = "This link was opened already, and it works once. Use the browser that opened it, or ask for a new link."


def add_rater(ctx: Context, actor: Actor, comparison_id: str, name: str) -> tuple[Rater, str]:
    """Add a rater. Returns them with the secret of their link, which is shown only once."""
    secret, now = ctx.tokens.new(), ctx.clock.now()
    with ctx.uow() as tx:
        _open_comparison(tx, actor, comparison_id)
        others = tx.comparisons.raters(comparison_id)
        if any(other.name.casefold() == name.casefold() for other in others):
            raise ConflictError(f"There is already a rater named {name}. Give them a new link, or use another name.")
        if len(others) >= MAX_RATERS:
            raise ConflictError(f"A comparison has at most {MAX_RATERS} raters.")
        rater = Rater(
            id=new_id("rater", now),
            comparison_id=comparison_id,
            name=name,
            created_at=now,
            link_hash=ctx.tokens.hash(secret),
        )
        tx.comparisons.add_rater(rater)
    return rater, secret


def new_link(ctx: Context, actor: Actor, comparison_id: str, rater_id: str) -> tuple[Rater, str]:
    """A new link for a rater who lost theirs, or whose link was revoked. Their old browser is logged out."""
    secret = ctx.tokens.new()
    with ctx.uow() as tx:
        _open_comparison(tx, actor, comparison_id)
        rater = _rater_of(tx, comparison_id, rater_id)
        rater.link_hash, rater.cookie_hash = ctx.tokens.hash(secret), None
        rater.opened_at = rater.revoked_at = None
        tx.comparisons.save_rater(rater)
    return rater, secret


def revoke(ctx: Context, actor: Actor, comparison_id: str, rater_id: str) -> None:
    """Revoke a rater's link and browser. Their votes stay."""
    with ctx.uow() as tx:
        comparison_of(tx, actor, comparison_id, lock=True)
        rater = _rater_of(tx, comparison_id, rater_id)
        rater.link_hash = rater.cookie_hash = None
        rater.revoked_at = ctx.clock.now()
        tx.comparisons.save_rater(rater)


def _open_comparison(tx: Transaction, actor: Actor, comparison_id: str) -> BlindComparison:
    comparison = comparison_of(tx, actor, comparison_id, lock=True)
    if comparison.closed_at is not None:
        raise ConflictError("This comparison is closed, so it takes no more votes.")
    return comparison


def _rater_of(tx: Transaction, comparison_id: str, rater_id: str) -> Rater:
    rater = tx.comparisons.rater_for_update(rater_id)
    if rater is None or rater.comparison_id != comparison_id:
        raise NotFoundError(f"There is no rater {rater_id} in this comparison.")
    return rater


def look_up_link(ctx: Context, secret: str) -> Rater:
    """The rater of a link, which may be used. Raises `NotFoundError` for a wrong or revoked one."""
    with ctx.uow() as tx:
        return _by_link(ctx, tx, secret)


def open_link(ctx: Context, secret: str) -> tuple[Rater, str]:
    """Use a link. Returns its rater with the secret for the cookie of their browser.

    Raises `ConflictError` for a link that was used.
    """
    cookie = ctx.tokens.new()
    with ctx.uow() as tx:
        rater = _by_link(ctx, tx, secret, lock=True)
        if rater.opened_at is not None:
            raise ConflictError(USED)
        rater.cookie_hash, rater.opened_at = ctx.tokens.hash(cookie), ctx.clock.now()
        tx.comparisons.save_rater(rater)
    return rater, cookie


def _by_link(ctx: Context, tx: Transaction, secret: str, *, lock: bool = False) -> Rater:
    hashed = ctx.tokens.hash(secret)
    rater = tx.comparisons.rater_by_link(hashed)
    if rater is not None and lock:
        rater = tx.comparisons.rater_for_update(rater.id)  # another browser may have been faster
    if rater is None or rater.link_hash != hashed:
        raise NotFoundError(GONE)
    return rater


def rater_with(ctx: Context, tx: Transaction, rater_id: str, cookie: str) -> Rater:
    """The rater whose browser has this cookie. Raises `NotFoundError`, also after their link was revoked."""
    rater = tx.comparisons.rater(rater_id)
    if rater is None or not hmac.compare_digest(rater.cookie_hash or "", ctx.tokens.hash(cookie)):
        raise NotFoundError(GONE)
    return rater
