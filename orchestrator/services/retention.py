"""Delete old records that are no longer needed. Curves, samples and events of jobs are kept."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.ports.repository import Transaction
from orchestrator.services.context import Context, first_id

DAY_S = 86_400.0
TOKENS_KEPT_S = 30 * DAY_S
"""Counted from the end of their validity. Until they are deleted, a page shows that they expired."""

DELIVERIES_KEPT_S = 30 * DAY_S
"""After this time a problem that still exists is reported once more."""

READINGS_KEPT_S = 90 * DAY_S
"""Counted from the start of their session. No session lasts as long."""

AT_ONCE = 1_000


def tidy(ctx: Context, at_once: int = AT_ONCE) -> None:
    """Delete expired tokens, sent messages and old hardware readings, `at_once` rows at a time.

    One-time links are kept in memory and expire there.
    """
    now = ctx.clock.now()
    _all(ctx, at_once, lambda tx: tx.tokens.delete_expired(now - TOKENS_KEPT_S, at_once))
    _all(ctx, at_once, lambda tx: tx.deliveries.delete_old(now - DELIVERIES_KEPT_S, at_once))
    _all(ctx, at_once, lambda tx: tx.reports.delete_readings(first_id("lease", now - READINGS_KEPT_S), at_once))


def _all(ctx: Context, at_once: int, forget: Callable[[Transaction], int]) -> None:
    """Delete in several short transactions, so that other writers never wait for more than one of them."""
    gone = at_once
    while gone == at_once:
        with ctx.uow() as tx:
            gone = forget(tx)
