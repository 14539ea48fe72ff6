"""Compare the database with what providers report, and repair the difference. Safe to run at any time."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from orchestrator.domain.accounts import Account
from orchestrator.domain.jobs import Lease
from orchestrator.domain.lifecycle import EndReason, LeaseState
from orchestrator.ports.providers import Handle, Liveness, Observation, Provider, ProviderError, SupportsLogs
from orchestrator.ports.stores import StoreError
from orchestrator.services import worker_messages
from orchestrator.services.checkpoints import abandon_stale, sweep_strays
from orchestrator.services.context import Context
from orchestrator.services.datasets import sweep_discarded
from orchestrator.services.failed_starts import NEARLY_WHOLE, Explanation
from orchestrator.services.leases import lease_prefix, release_lease
from orchestrator.services.offline_sessions import is_to_be_stopped
from orchestrator.services.received_files import is_storing
from worker.shared import causes

FORGET_REQUESTS_AFTER_S = 86_400.0
_Settle = Callable[[Context, Lease, Observation, Handle, float], None]


def reconcile(ctx: Context) -> None:
    """One pass over every session that is live or may still hold something of ours.

    A session that cannot be settled does not delay the others. An account that answers slowly delays only its own
    sessions: it is left out of further passes until they are settled. All errors are raised together at the end.
    """
    with ctx.uow() as tx:
        live = [lease for lease in tx.leases.live() if lease.id not in ctx.launching]
        in_use = {lease.session for lease in live}
        # A session that continues with another lease is not cleared away.
        ended = [x for x in tx.leases.uncollected() if x.id not in ctx.launching and x.session not in in_use]
        accounts = {account.id: account for account in tx.accounts.all()}
        # With the times that it is compared with, because the clock may jump while an account answers slowly.
        now = ctx.clock.now()
        tx.idempotency.delete_expired(now - FORGET_REQUESTS_AFTER_S)
    work: dict[str, list[tuple[_Settle, Lease]]] = defaultdict(list)
    for settle, leases in ((_judge, live), (_clear_away, ended)):
        for lease in leases:
            work[lease.account_id].append((settle, lease))
    calls = {account_id: partial(_settle, ctx, theirs, accounts, now) for account_id, theirs in work.items()}
    settled = ctx.settling.gather(calls, ctx.limits.patience_s, on_late=ctx.wake)
    abandon_stale(ctx)
    sweep_discarded(ctx)
    ctx.wake()
    if problems := [problem for theirs in settled.values() for problem in theirs]:
        raise ExceptionGroup("some sessions could not be settled", problems)


def _settle(
    ctx: Context, work: list[tuple[_Settle, Lease]], accounts: dict[str, Account], now: float
) -> list[Exception]:
    """Settle the sessions of one account, one after the other. Returns the errors."""
    seen = _observe(ctx, [lease for _, lease in work], accounts)
    problems: list[Exception] = []
    for settle, lease in work:
        try:
            settle(ctx, lease, seen[lease.session], Handle.of(lease, accounts.get(lease.account_id)), now)
        except Exception as error:  # noqa: BLE001  `reconcile` raises it after all other sessions
            error.add_note(f"while settling {lease.id}")
            problems.append(error)
    return problems


class Watch:
    """Passes over all sessions, one after the other.

    A server that slept with its computer has received nothing, so silence in that time proves nothing. It slept if more
    than `longest_rest_s` are between two passes. If its clock was set back, it counts from now as well. Machines may
    need `find_us_s` to find a server that has moved.
    """

    def __init__(self, ctx: Context, longest_rest_s: float, find_us_s: float = 0.0) -> None:
        self._ctx, self._longest_rest_s = replace(ctx, started_at=ctx.started_at + find_us_s), longest_rest_s
        self._rests_since = ctx.clock.now()
        self.has_looked = False

    def round(self) -> None:
        """One pass. Raises what `reconcile` raises."""
        now = self._ctx.clock.now()
        if not 0 <= now - self._rests_since <= self._longest_rest_s:
            self._ctx = replace(self._ctx, started_at=now)
        try:
            reconcile(self._ctx)
        finally:
            self._rests_since = self._ctx.clock.now()
            self.has_looked = True


def _observe(ctx: Context, leases: list[Lease], accounts: dict[str, Account]) -> dict[str, Observation]:
    """What the provider of one account reports about its sessions."""
    try:
        observations = ctx.providers.get(leases[0].provider).observe(
            [Handle.of(lease, accounts.get(lease.account_id)) for lease in leases]
        )
    except Exception as error:  # noqa: BLE001  a failed driver knows nothing, and must not block the others
        observations = [Observation(lease_id=x.session, liveness=Liveness.UNKNOWN, detail=str(error)) for x in leases]
    return {o.lease_id: o for o in observations}


def _judge(ctx: Context, lease: Lease, seen: Observation, handle: Handle, now: float) -> None:
    """Decide about a session. Only the provider's report or a passed deadline ends a lease, never silence alone."""
    if seen.liveness is Liveness.ENDED:
        if _adopt(ctx, lease, handle, over=True):
            _expire(ctx, lease, seen.detail or "the machine ended without a message", seen=seen)
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
    """The end of a session's time.

    A machine that cannot call may first wait in its provider's queue for as long again.
    """
    waits = lease.offline and lease.started_at is None
    return lease.deadline_at + (lease.budget_s if waits else 0.0)


def _saving_s(ctx: Context, lease: Lease, seen: Observation) -> float:
    """How long the provider may take to save the files of a machine that cannot call.

    Files that are not saved yet are lost if the session is stopped earlier.
    """
    if seen.liveness is not Liveness.RUNNING or not lease.offline:
        return 0.0
    return ctx.providers.get(lease.provider).capabilities.saving_s


def _overdue(ctx: Context, lease: Lease, seen: Observation, handle: Handle, now: float) -> None:
    if seen.liveness is Liveness.RUNNING:
        if not (_sleeps_with_us(ctx, lease) and _ask_to_leave(ctx, lease, now)):
            _end(ctx, lease, handle)
    elif now > lease.deadline_at + ctx.limits.stop_grace_s and not (lease.offline and _is_wanted(ctx, lease)):
        _expire(ctx, lease, "the time limit has passed and the provider does not answer")


def _sleeps_with_us(ctx: Context, lease: Lease) -> bool:
    """Whether the worker's clock stops with this computer.

    Such a worker does not notice the end of its time while the computer sleeps.
    """
    return ctx.providers.get(lease.provider).capabilities.shares_disk and not lease.offline


def _ask_to_leave(ctx: Context, lease: Lease, now: float) -> bool:
    """Give a session time to save and exit. False if it had that time before, or is not active."""
    with ctx.uow() as tx:
        current = tx.leases.get(lease.id)
        if current is None or current.state is not LeaseState.ACTIVE:
            return False
        current.to(LeaseState.DRAINING)
        current.deadline_at = now + ctx.limits.stop_grace_s
        tx.leases.save(current)
        return True


def _is_wanted(ctx: Context, lease: Lease) -> bool:
    """Whether it makes sense to wait for the results of a machine that cannot call.

    They are stored at its provider, and are wanted unless the job was cancelled.
    """
    with ctx.uow() as tx:
        job = tx.jobs.get(lease.job_id)
    return job is not None and job.cancel_requested_at is None


def _disobeys(ctx: Context, lease: Lease, now: float) -> bool:
    with ctx.uow() as tx:
        job = tx.jobs.get(lease.job_id)
    requested_at = [t for t in (job.cancel_requested_at, job.pause_requested_at) if t is not None] if job else []
    silent = lease.last_seen_at is None or now - lease.last_seen_at > ctx.limits.stop_grace_s
    cancelled = job is not None and job.cancel_requested_at is not None
    # The worker could not get the request while the server was away.
    requested_since = max(min(requested_at), ctx.started_at) if requested_at else now
    return now - requested_since > ctx.limits.stop_grace_s and (silent or cancelled)


def _end(ctx: Context, lease: Lease, handle: Handle) -> None:
    """Stop a session. If its machine cannot receive a request to stop, its results are collected first."""
    if not lease.offline or _adopt(ctx, lease, handle, over=False):
        _stop(ctx.providers.get(lease.provider), handle)


def _stop(provider: Provider, handle: Handle) -> None:
    try:
        provider.stop(handle)
    except ProviderError:
        return  # the next pass tries again


def _adopt(ctx: Context, lease: Lease, handle: Handle, *, over: bool) -> bool:
    """Apply the messages that the session wrote but could not deliver. False if that must be tried again later.

    Its output comes first, because a provider keeps it even if all files are lost. Its own record of messages comes
    second. Both get the same checks as a line that arrives in time: its lease must allow the names of the files.
    """
    provider = ctx.providers.get(lease.provider)
    try:
        store = ctx.stores.get(lease.store)
        left = provider.collect_outputs(handle)
        for key, path in left.files.items():
            if _is_of(lease, key):
                store.put(key, path)
        if over and lease.offline and isinstance(provider, SupportsLogs):
            result = worker_messages.LogReader(ctx=ctx, lease_id=lease.id).read(provider.follow(handle))
            if result is worker_messages.ApplyResult.RETRY:
                return False
    except (ProviderError, StoreError):
        return False
    return worker_messages.replay(ctx, lease.id, left.messages)


def _is_of(lease: Lease, key: str) -> bool:
    return re.fullmatch(re.escape(lease_prefix(lease)) + r"[0-9a-f]{16}\.(safetensors|zip|jsonl|bin)", key) is not None


def _expire(ctx: Context, lease: Lease, why: str, *, seen: Observation | None = None) -> None:
    """Expire a session. With `seen`, its provider says that it has ended."""
    now = ctx.clock.now()
    with ctx.uow() as tx:
        current = tx.leases.get(lease.id)
        job = tx.jobs.get(lease.job_id)
        if current is None or job is None or not current.state.is_live:
            return
        detail = _in_the_providers_words(current, why, seen)
        cause = _why_unstarted(ctx, current, seen, now) if seen is not None and current.started_at is None else ""
        why_lost = Explanation(detail, cause)
        release_lease(tx, current, job, LeaseState.EXPIRED, EndReason.LOST, why_lost, at=now, actor="reconcile")


def _in_the_providers_words(lease: Lease, why: str, seen: Observation | None) -> str:
    """What the provider said at the launch counts for a session that it did not start. Nothing is guessed then.

    A session that has started has said why it could not save.
    """
    if not lease.detail:
        return why
    if lease.started_at is not None:
        return f"{why}; {lease.detail}"
    never_ran = seen is not None and lease.external_id is None and not seen.failed
    return f"it was not started: {lease.detail}" if never_ran else f"{why}; at its launch: {lease.detail}"


def _why_unstarted(ctx: Context, lease: Lease, seen: Observation, now: float) -> str:
    """The cause of a session that never started, or an empty text.

    There is one if the machine failed by itself, or was watched for nearly its whole time. A killed one has no cause.
    """
    if seen.failed:
        return causes.START
    watched_s = now - max(lease.created_at, ctx.started_at)
    was_there = lease.external_id is not None and watched_s >= NEARLY_WHOLE * lease.budget_s
    return causes.NO_STEP if was_there else ""


def _keep_external_id(ctx: Context, lease: Lease, external_id: str) -> None:
    with ctx.uow() as tx:
        tx.leases.set_external_id(lease.id, external_id)


def _clear_away(ctx: Context, lease: Lease, seen: Observation, handle: Handle, now: float) -> None:
    """Leave nothing of an ended lease running or uncollected."""
    provider = ctx.providers.get(lease.provider)
    if seen.liveness is Liveness.UNKNOWN:
        return
    if seen.liveness is Liveness.RUNNING:
        saving_s = 0.0 if lease.end_reason is EndReason.CANCELLED else _saving_s(ctx, lease, seen)
        if now - (lease.ended_at or now) > ctx.limits.stop_grace_s + saving_s:
            _stop(provider, handle)
        return
    if is_storing(ctx, lease):
        return  # the next pass deletes the file, which comes too late
    try:
        provider.clean_up(handle)
    except ProviderError:
        return
    if not sweep_strays(ctx, lease):
        return
    with ctx.uow() as tx:
        tx.leases.set_collected(lease.id, now)
