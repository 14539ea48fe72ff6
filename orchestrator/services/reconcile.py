"""Comparing what the database believes with what providers say, and repairing the difference. Safe to run at any time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from orchestrator.domain.lifecycle import EndReason, LeaseState
from orchestrator.domain.model import Account, Lease
from orchestrator.ports import (
    Context,
    Handle,
    Liveness,
    Observation,
    Provider,
    ProviderError,
    ProviderUnavailable,
    StoreError,
)
from orchestrator.services import intake
from orchestrator.services.checkpoints import abandon_stale
from orchestrator.services.leases import hand_back

FORGET_REQUESTS_AFTER_S = 86_400.0


def reconcile(ctx: Context) -> None:
    """One pass over every session that is live or may still hold something of ours."""
    with ctx.uow() as tx:
        live = [lease for lease in tx.live_leases() if lease.id not in ctx.launching]
        ended = tx.uncollected_leases()
        accounts = {account.id: account for account in tx.accounts()}
        tx.forget_remembered(ctx.clock.now() - FORGET_REQUESTS_AFTER_S)
    seen = _observe(ctx, live + ended, accounts)
    for lease in live:
        _judge(ctx, lease, seen[lease.id], _handle(lease, accounts))
    for lease in ended:
        _clear_away(ctx, lease, seen[lease.id], _handle(lease, accounts))
    abandon_stale(ctx)
    ctx.wake()


def _handle(lease: Lease, accounts: dict[str, Account]) -> Handle:
    account = accounts.get(lease.account_id) or Account(
        id=lease.account_id, provider=lease.provider, member_id=None, name="removed", config={}, created_at=0.0
    )
    return Handle(lease_id=lease.id, account=account, external_id=lease.external_id)


def _observe(ctx: Context, leases: Iterable[Lease], accounts: dict[str, Account]) -> dict[str, Observation]:
    by_provider: dict[str, list[Lease]] = defaultdict(list)
    for lease in leases:
        by_provider[lease.provider].append(lease)
    seen: dict[str, Observation] = {}
    for name, theirs in by_provider.items():
        try:
            found = ctx.providers.get(name).observe([_handle(lease, accounts) for lease in theirs])
        except ProviderError as error:
            found = [Observation(lease_id=x.id, liveness=Liveness.UNKNOWN, detail=str(error)) for x in theirs]
        seen.update({o.lease_id: o for o in found})
    return seen


def _judge(ctx: Context, lease: Lease, seen: Observation, handle: Handle) -> None:
    """Silence is not death: only a provider's word or a passed deadline ends a lease."""
    now = ctx.clock.now()
    if seen.liveness is Liveness.ENDED:
        if _adopt(ctx, lease, handle):
            _expire(ctx, lease, seen.detail or "the machine ended without a word")
        return
    if seen.external_id and seen.external_id != lease.external_id:
        _keep_external_id(ctx, lease, seen.external_id)
    if seen.liveness is Liveness.UNSEEN and now > max(lease.expires_at, ctx.started_at + ctx.rules.lease_s):
        _expire(ctx, lease, "no report came in time")
    elif now > lease.deadline_at:
        _overdue(ctx, lease, seen, handle, now)
    elif _disobeys(ctx, lease, now):
        _stop(ctx.providers.get(lease.provider), handle)


def _overdue(ctx: Context, lease: Lease, seen: Observation, handle: Handle, now: float) -> None:
    if seen.liveness is Liveness.RUNNING:
        _stop(ctx.providers.get(lease.provider), handle)
    elif now > lease.deadline_at + ctx.rules.stop_grace_s:
        _expire(ctx, lease, "its time is over and its provider does not answer")


def _disobeys(ctx: Context, lease: Lease, now: float) -> bool:
    with ctx.uow() as tx:
        job = tx.job(lease.job_id)
    asked = [t for t in (job.cancel_requested_at, job.pause_requested_at) if t is not None] if job else []
    silent = lease.last_seen_at is None or now - lease.last_seen_at > ctx.rules.stop_grace_s
    cancelled = job is not None and job.cancel_requested_at is not None
    return bool(asked) and now - min(asked) > ctx.rules.stop_grace_s and (silent or cancelled)


def _stop(provider: Provider, handle: Handle) -> None:
    try:
        provider.stop(handle)
    except ProviderError:
        return  # the next pass asks again


def _adopt(ctx: Context, lease: Lease, handle: Handle) -> bool:
    """Take over what the dead session wrote down but could not deliver; False if that must be tried again later."""
    try:
        store = ctx.stores.get(lease.store)
        left = ctx.providers.get(lease.provider).collect(handle)
        for key, path in left.files.items():
            store.put(key, path)
    except (ProviderUnavailable, StoreError):
        return False
    intake.replay(ctx, lease.id, left.messages)
    return True


def _expire(ctx: Context, lease: Lease, why: str) -> None:
    now = ctx.clock.now()
    with ctx.uow() as tx:
        current = tx.lease(lease.id)
        job = tx.job(lease.job_id)
        if current is None or job is None or not current.state.is_live:
            return
        hand_back(tx, current, job, LeaseState.EXPIRED, EndReason.LOST, detail=why, at=now, actor="reconcile")


def _keep_external_id(ctx: Context, lease: Lease, external_id: str) -> None:
    with ctx.uow() as tx:
        tx.note_external_id(lease.id, external_id)


def _clear_away(ctx: Context, lease: Lease, seen: Observation, handle: Handle) -> None:
    """An ended lease must leave nothing running and nothing uncollected behind."""
    provider = ctx.providers.get(lease.provider)
    now = ctx.clock.now()
    if seen.liveness is Liveness.UNKNOWN:
        return
    if seen.liveness is Liveness.RUNNING:
        if now - (lease.ended_at or now) > ctx.rules.stop_grace_s:
            _stop(provider, handle)
        return
    try:
        provider.forget(handle)
    except ProviderError:
        return
    with ctx.uow() as tx:
        tx.note_collected(lease.id, now)
