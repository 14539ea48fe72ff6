"""Comparing what the database believes with what providers say, and repairing the difference. Safe to run at any time."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from orchestrator.domain.lifecycle import EndReason, LeaseState
from orchestrator.domain.model import Account, Lease
from orchestrator.ports.providers import (
    Context,
    Handle,
    Liveness,
    Observation,
    Provider,
    ProviderError,
    StoreError,
    SupportsLogs,
)
from orchestrator.services import worker_messages
from orchestrator.services.checkpoints import abandon_stale, sweep_strays
from orchestrator.services.dataset_deletion import sweep_discarded
from orchestrator.services.failed_starts import NEARLY_WHOLE
from orchestrator.services.leases import lease_prefix, release_lease
from orchestrator.services.offline_sessions import is_to_be_stopped
from worker.shared import causes

FORGET_REQUESTS_AFTER_S = 86_400.0
_Settle = Callable[[Context, Lease, Observation, Handle], None]


def reconcile(ctx: Context) -> None:
    """One pass over every session that is live or may still hold something of ours.

    A session that cannot be settled keeps none of the others waiting, and an account that answers slowly only its own:
    until its sessions are settled it is left out of further passes. What went wrong is raised together at the end.
    """
    with ctx.uow() as tx:
        live = [lease for lease in tx.live_leases() if lease.id not in ctx.launching]
        ended = [lease for lease in tx.uncollected_leases() if lease.id not in ctx.launching]
        accounts = {account.id: account for account in tx.accounts()}
        tx.forget_remembered(ctx.clock.now() - FORGET_REQUESTS_AFTER_S)
    work: dict[str, list[tuple[_Settle, Lease]]] = defaultdict(list)
    for settle, leases in ((_judge, live), (_clear_away, ended)):
        for lease in leases:
            work[lease.account_id].append((settle, lease))
    calls = {account_id: partial(_settle, ctx, theirs, accounts) for account_id, theirs in work.items()}
    settled = ctx.settling.gather(calls, ctx.limits.patience_s, on_late=ctx.wake)
    abandon_stale(ctx)
    sweep_discarded(ctx)
    ctx.wake()
    if problems := [problem for theirs in settled.values() for problem in theirs]:
        raise ExceptionGroup("some sessions could not be settled", problems)


def _settle(ctx: Context, work: list[tuple[_Settle, Lease]], accounts: dict[str, Account]) -> list[Exception]:
    """What is to be done about the sessions of one account, one after the other; returns what went wrong."""
    seen = _observe(ctx, [lease for _, lease in work], accounts)
    problems: list[Exception] = []
    for settle, lease in work:
        try:
            settle(ctx, lease, seen[lease.id], handle_of(lease, accounts))
        except Exception as error:  # noqa: BLE001  raised by `reconcile`, after all others had their turn
            error.add_note(f"while settling {lease.id}")
            problems.append(error)
    return problems


class Watch:
    """Passes over all sessions, one after the other.

    A server that slept along with its computer has heard nobody: no silence of that time proves anything. It slept where more
    than `longest_rest_s` lie between two passes.
    """

    def __init__(self, ctx: Context, longest_rest_s: float) -> None:
        self._ctx, self._longest_rest_s = ctx, longest_rest_s
        self._rests_since = ctx.clock.now()

    def round(self) -> None:
        """One pass; raises what `reconcile` raises."""
        now = self._ctx.clock.now()
        if now - self._rests_since > self._longest_rest_s:
            self._ctx = replace(self._ctx, started_at=now)
        try:
            reconcile(self._ctx)
        finally:
            self._rests_since = self._ctx.clock.now()


def handle_of(lease: Lease, accounts: dict[str, Account]) -> Handle:
    """How the lease's provider finds its session, also when the account was removed."""
    account = accounts.get(lease.account_id) or Account(
        id=lease.account_id, provider=lease.provider, member_id=None, name="removed", config={}, created_at=0.0
    )
    return Handle(lease_id=lease.id, account=account, external_id=lease.external_id)


def _observe(ctx: Context, leases: list[Lease], accounts: dict[str, Account]) -> dict[str, Observation]:
    """Sessions of one account, and so of one provider, as that sees them."""
    try:
        found = ctx.providers.get(leases[0].provider).observe([handle_of(lease, accounts) for lease in leases])
    except Exception as error:  # noqa: BLE001  a driver that fails knows nothing, and keeps no other one waiting
        found = [Observation(lease_id=x.id, liveness=Liveness.UNKNOWN, detail=str(error)) for x in leases]
    return {o.lease_id: o for o in found}


def _judge(ctx: Context, lease: Lease, seen: Observation, handle: Handle) -> None:
    """Silence is not death: only a provider's word or a passed deadline ends a lease."""
    now = ctx.clock.now()
    if seen.liveness is Liveness.ENDED:
        if _adopt(ctx, lease, handle, over=True):
            _expire(ctx, lease, seen.detail or "the machine ended without a word", seen=seen)
        return
    if seen.external_id and seen.external_id != lease.external_id:
        _keep_external_id(ctx, lease, seen.external_id)
    if seen.liveness is Liveness.UNSEEN and now > max(lease.expires_at, ctx.started_at + ctx.limits.lease_s):
        _expire(ctx, lease, "no report came in time")
    elif now > _deadline(lease) + _saving_s(ctx, lease, seen):
        _overdue(ctx, lease, seen, handle, now)
    elif is_to_be_stopped(ctx, lease) if lease.offline else _disobeys(ctx, lease, now):
        _end(ctx, lease, handle)


def _deadline(lease: Lease) -> float:
    """A machine that cannot call may wait in its provider's queue as long as it may then work."""
    waits = lease.offline and lease.started_at is None
    return lease.deadline_at + (lease.budget_s if waits else 0.0)


def _saving_s(ctx: Context, lease: Lease, seen: Observation) -> float:
    """What a machine that cannot call has kept is lost if its session is ended before its provider has saved it."""
    if seen.liveness is not Liveness.RUNNING or not lease.offline:
        return 0.0
    return ctx.providers.get(lease.provider).capabilities.saving_s


def _overdue(ctx: Context, lease: Lease, seen: Observation, handle: Handle, now: float) -> None:
    if seen.liveness is Liveness.RUNNING:
        if not (_sleeps_with_us(ctx, lease) and _ask_to_leave(ctx, lease, now)):
            _end(ctx, lease, handle)
    elif now > lease.deadline_at + ctx.limits.stop_grace_s and not (lease.offline and _is_wanted(ctx, lease)):
        _expire(ctx, lease, "its time is over and its provider does not answer")


def _sleeps_with_us(ctx: Context, lease: Lease) -> bool:
    """The clock by which a worker leaves in time stands still while its computer sleeps."""
    return ctx.providers.get(lease.provider).capabilities.shares_disk and not lease.offline


def _ask_to_leave(ctx: Context, lease: Lease, now: float) -> bool:
    """Give a session time to save and go; False if it had its chance, or is not at work."""
    with ctx.uow() as tx:
        current = tx.lease(lease.id)
        if current is None or current.state is not LeaseState.ACTIVE:
            return False
        current.to(LeaseState.DRAINING)
        current.deadline_at = now + ctx.limits.stop_grace_s
        tx.save_lease(current)
        return True


def _is_wanted(ctx: Context, lease: Lease) -> bool:
    """What a machine that cannot call has done lies at its provider, and is worth waiting for unless it was cancelled."""
    with ctx.uow() as tx:
        job = tx.job(lease.job_id)
    return job is not None and job.cancel_requested_at is None


def _disobeys(ctx: Context, lease: Lease, now: float) -> bool:
    with ctx.uow() as tx:
        job = tx.job(lease.job_id)
    asked = [t for t in (job.cancel_requested_at, job.pause_requested_at) if t is not None] if job else []
    silent = lease.last_seen_at is None or now - lease.last_seen_at > ctx.limits.stop_grace_s
    cancelled = job is not None and job.cancel_requested_at is not None
    heard = max(min(asked), ctx.started_at) if asked else now  # nobody could ask while the server was away
    return now - heard > ctx.limits.stop_grace_s and (silent or cancelled)


def _end(ctx: Context, lease: Lease, handle: Handle) -> None:
    """Stop a session; one that cannot be asked to say goodbye is first relieved of what it has."""
    if not lease.offline or _adopt(ctx, lease, handle, over=False):
        _stop(ctx.providers.get(lease.provider), handle)


def _stop(provider: Provider, handle: Handle) -> None:
    try:
        provider.stop(handle)
    except ProviderError:
        return  # the next pass asks again


def _adopt(ctx: Context, lease: Lease, handle: Handle, *, over: bool) -> bool:
    """Take over what the session wrote down but could not deliver; False if that must be tried again later.

    First its output, which a provider keeps even where all files are lost, then its own record of every message. Neither
    is believed more than a line that arrives in time: the names of its files must be ones that its lease allows.
    """
    provider = ctx.providers.get(lease.provider)
    try:
        store = ctx.stores.get(lease.store)
        left = provider.collect(handle)
        for key, path in left.files.items():
            if _is_of(lease, key):
                store.put(key, path)
        if over and lease.offline and isinstance(provider, SupportsLogs):
            heard = worker_messages.LogReader(ctx=ctx, lease_id=lease.id).listen(provider.follow(handle))
            if heard is worker_messages.ApplyResult.RETRY:
                return False
    except (ProviderError, StoreError):
        return False
    return worker_messages.replay(ctx, lease.id, left.messages)


def _is_of(lease: Lease, key: str) -> bool:
    return re.fullmatch(re.escape(lease_prefix(lease)) + r"[0-9a-f]{16}\.(safetensors|zip)", key) is not None


def _expire(ctx: Context, lease: Lease, why: str, *, seen: Observation | None = None) -> None:
    """Give a session up; with `seen` its provider says that it has ended."""
    now = ctx.clock.now()
    with ctx.uow() as tx:
        current = tx.lease(lease.id)
        job = tx.job(lease.job_id)
        if current is None or job is None or not current.state.is_live:
            return
        words = f"{why}; at its launch: {current.detail}" if current.detail else why
        cause = _why_unstarted(ctx, current, seen, now) if seen is not None and current.started_at is None else ""
        end = EndReason.LOST
        release_lease(tx, current, job, LeaseState.EXPIRED, end, detail=words, at=now, actor="reconcile", cause=cause)


def _why_unstarted(ctx: Context, lease: Lease, seen: Observation, now: float) -> str:
    """A machine that ended by itself has a cause, and so has one that was watched for its whole time; a killed one has none."""
    if seen.failed:
        return causes.START
    watched_s = now - max(lease.created_at, ctx.started_at)
    was_there = lease.external_id is not None and watched_s >= NEARLY_WHOLE * lease.budget_s
    return causes.NO_STEP if was_there else ""


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
        saving_s = 0.0 if lease.end_reason is EndReason.CANCELLED else _saving_s(ctx, lease, seen)
        if now - (lease.ended_at or now) > ctx.limits.stop_grace_s + saving_s:
            _stop(provider, handle)
        return
    try:
        provider.forget(handle)
    except ProviderError:
        return
    sweep_strays(ctx, lease)
    with ctx.uow() as tx:
        tx.note_collected(lease.id, now)
