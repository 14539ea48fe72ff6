"""What grows with time alone and nobody can need any more is forgotten. Curves, samples and events of jobs are kept."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.ports.providers import Context
from orchestrator.ports.repository import Transaction
from orchestrator.services.ids import first_id

DAY_S = 86_400.0
TOKENS_KEPT_S = 30 * DAY_S
"""After they expired; until then a page says so."""

DELIVERIES_KEPT_S = 30 * DAY_S
"""Who is still needed for the same reason after this time is told once more."""

READINGS_KEPT_S = 90 * DAY_S
"""After their session began; no session lasts as long."""

AT_ONCE = 1_000


def tidy(ctx: Context) -> None:
    """Forget expired tokens, messages that went out and what sessions said of their machines, a few rows at a time.

    One-time links live in memory and are forgotten there.
    """
    now = ctx.clock.now()
    _all(ctx, lambda tx: tx.forget_expired_tokens(now - TOKENS_KEPT_S, AT_ONCE))
    _all(ctx, lambda tx: tx.forget_deliveries(now - DELIVERIES_KEPT_S, AT_ONCE))
    _all(ctx, lambda tx: tx.forget_readings(first_id("lease", now - READINGS_KEPT_S), AT_ONCE))


def _all(ctx: Context, forget: Callable[[Transaction], int]) -> None:
    """In transactions of their own, so that nobody waits for more than one of them."""
    gone = AT_ONCE
    while gone == AT_ONCE:
        with ctx.uow() as tx:
            gone = forget(tx)
