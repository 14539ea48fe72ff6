"""Lease queued jobs to free machines, and explain why a job still waits."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.domain.accounts import Account
from orchestrator.domain.errors import ConflictError
from orchestrator.domain.jobs import Job, Lease
from orchestrator.domain.lifecycle import EndReason, JobState, LeaseState
from orchestrator.domain.scheduling import Blocker, Candidate, PendingJob, Placement, explain, match
from orchestrator.ports.providers import (
    CredentialsRefused,
    LaunchRejected,
    LaunchRequest,
    ProviderError,
    ProviderUnavailable,
    QuotaExhausted,
)
from orchestrator.ports.repository import Transaction
from orchestrator.ports.stores import StoreError
from orchestrator.services.capacity import is_offline, less_live, list_capacity, note_problem
from orchestrator.services.context import Context, new_id
from orchestrator.services.failed_starts import Explanation, too_small_at
from orchestrator.services.leases import release_lease
from orchestrator.services.offline_sessions import offline_bundle
from worker.shared import causes

QUEUE_DEPTHS = (16, 128, 1024)
"""Queued jobs of each member that one round considers.

A round goes deeper only while machines stay free, because some jobs fit none.
"""

LAUNCHES_PER_ROUND = 64
STORE_REST_S = 60.0
"""How long an account rests after the store could not open uploads for a machine of it."""
ROOM_REST_S = 5.0
"""How long an account rests after this server had no room for the files of a session."""
FULL_REST_S = 300.0
"""How long an account rests after it had no room and did not say until when."""


@dataclass(frozen=True, kw_only=True)
class _Claim:
    lease: Lease
    account: Account


def dispatch(ctx: Context) -> int:
    """One round: claim jobs for free machines in one transaction, then launch outside of it.

    Returns the number of claimed jobs.
    """
    with ctx.uow() as tx:
        accounts = tx.accounts.all() if tx.jobs.has_queued() else []
    places = list_capacity(ctx, accounts)
    if not any(p.slots and not p.closed_reason for p in places):
        return 0
    with ctx.uow() as tx:
        claims = _claim(ctx, tx, places, {a.id: a for a in accounts})
        ctx.launching.update(c.lease.id for c in claims)
    try:
        for claim in claims:
            ctx.spawn(lambda claim=claim: _launch(ctx, claim))
    except BaseException:
        # Reconciling repairs only launches that it may touch.
        ctx.launching.difference_update(c.lease.id for c in claims)
        raise
    return len(claims)


def _claim(ctx: Context, tx: Transaction, places: list[Candidate], accounts: dict[str, Account]) -> list[_Claim]:
    now = ctx.clock.now()
    by_member, by_account = tx.leases.live_counts()
    free = less_live(places, by_account)
    room = min(LAUNCHES_PER_ROUND, sum(p.slots for p in free if not p.closed_reason))
    if room == 0:
        return []
    chosen: list[Placement] = []
    for depth in QUEUE_DEPTHS:
        waiting = [to_pending(job, too_small_at(tx, job)) for job in tx.jobs.queued(max(depth, room), now)]
        chosen = match(waiting, free, by_member, now)[:LAUNCHES_PER_ROUND]
        if len(chosen) >= room or len(waiting) < depth:
            break
    claims = (create_lease(ctx, tx, m, now, offline=is_offline(ctx, m.provider)) for m in chosen)
    return [_Claim(lease=lease, account=accounts[lease.account_id]) for lease in claims if lease is not None]


def create_lease(
    ctx: Context,
    tx: Transaction,
    chosen: Placement,
    now: float,
    *,
    offline: bool,
    actor: str = "scheduler",
    before: Lease | None = None,
) -> Lease | None:
    """Write the next lease of a queued job. None if the job is no longer queued.

    With `before`, it begins in the session of that lease, which has ended.
    """
    job = tx.jobs.get(chosen.job_id)
    if job is None or job.state is not JobState.QUEUED:
        return None
    lease_id = new_id("lease", now) if before is None else before.next_id
    fence = job.create_lease(at=now, actor=actor, lease_id=lease_id)
    lease = Lease(
        id=lease_id,
        job_id=job.id,
        member_id=job.member_id,
        account_id=chosen.account_id,
        provider=chosen.provider,
        fence=fence,
        token_hash=ctx.tokens.hash(ctx.tokens.for_lease(lease_id)),
        created_at=now,
        expires_at=now + ctx.limits.start_grace_s,
        deadline_at=now + chosen.budget_s + ctx.limits.stop_grace_s,
        budget_s=chosen.budget_s,
        offline=offline,
        store=ctx.stores.current().name,
        external_id=None if before is None else before.external_id,
        first_step=job.head_step,
        step=job.head_step,
    )
    tx.leases.add(lease)
    tx.jobs.save(job)
    return lease


def _launch(ctx: Context, claim: _Claim) -> None:
    lease = claim.lease
    try:
        if lease.offline and not _is_live(ctx, lease):
            return  # cancelled while it waited, and its machine could not learn of that

        external_id = ctx.providers.get(lease.provider).launch(_request(ctx, claim))
    except CredentialsRefused as error:
        note_problem(ctx, claim.account, str(error))
        _launch_failed(ctx, lease.id, str(error), counts=False)
    except ConflictError:
        return  # the model is not available: the lease has ended, and its job says why

    except ProviderUnavailable as error:
        # The launch may have succeeded. Reconciling asks the provider and decides.
        _note_silence(ctx, lease.id, str(error))
    except StoreError as error:
        _not_ready(ctx, claim, f"the store does not accept files now ({error})", ctx.clock.now() + STORE_REST_S)
    except QuotaExhausted as error:
        _not_ready(ctx, claim, str(error), error.until)
    except (LaunchRejected, ProviderError) as error:
        _launch_failed(ctx, lease.id, str(error), cause=causes.LAUNCH)
    except Exception as error:
        _note_own_error(ctx, claim, error)
        raise
    else:
        with ctx.uow() as tx:
            tx.leases.set_external_id(lease.id, external_id)
    finally:
        ctx.launching.discard(lease.id)


def _note_own_error(ctx: Context, claim: _Claim, error: Exception) -> None:
    """An error of this server at a launch. The machine may have been started, unless it is this computer."""
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if is_full and ctx.providers.get(claim.lease.provider).capabilities.this_computer:
        _not_ready(ctx, claim, "this server's disk is full", ctx.clock.now() + ROOM_REST_S)
        return
    why = getattr(error, "strerror", None) or "an unexpected error, see the server's log"
    _note_silence(ctx, claim.lease.id, f"this server could not start it: {why}")


def _is_live(ctx: Context, lease: Lease) -> bool:
    with ctx.uow() as tx:
        current = tx.leases.get(lease.id)
    return current is not None and current.state.is_live


def _request(ctx: Context, claim: _Claim) -> LaunchRequest:
    lease = claim.lease
    ready = offline_bundle(ctx, lease) if lease.offline else None
    near = ctx.providers.get(lease.provider).capabilities.same_network
    with ctx.uow() as tx:
        job = tx.jobs.get_many([lease.job_id])[lease.job_id]
    return LaunchRequest(
        lease_id=lease.id,
        job_id=lease.job_id,
        account=claim.account,
        token=ctx.tokens.for_lease(lease.id),
        server_url=None if ready else ctx.server_url() if near else ctx.public_url,
        budget_s=lease.budget_s,
        fence=lease.fence,
        assignment=ready.assignment if ready else None,
        inputs=ready.inputs if ready else {},
        exports=job.is_export,
        chats=job.is_chat,
    )


def _not_ready(ctx: Context, claim: _Claim, why: str, until: float | None) -> None:
    """End the lease without counting it against the job, which has no fault. The account rests for a while."""
    now = ctx.clock.now()
    with ctx.uow() as tx:
        account = tx.accounts.get(claim.account.id)
        if account is not None:
            account.not_before = until if until is not None and until > now else now + FULL_REST_S
            account.note = why
            tx.accounts.save(account)
    _launch_failed(ctx, claim.lease.id, why, counts=False)


def _note_silence(ctx: Context, lease_id: str, why: str) -> None:
    """Keep the provider's message, so that people can read why nothing starts."""
    with ctx.uow() as tx:
        lease = tx.leases.get(lease_id)
        if lease is not None and lease.state is LeaseState.PROVISIONING:
            lease.detail = why
            tx.leases.save(lease)


def _launch_failed(ctx: Context, lease_id: str, why: str, *, counts: bool = True, cause: str = "") -> None:
    now = ctx.clock.now()
    with ctx.uow() as tx:
        lease = tx.leases.get(lease_id)
        job = tx.jobs.get(lease.job_id) if lease else None
        if lease is None or job is None or not lease.state.is_live:
            return
        lease.collected_at = now
        release_lease(
            tx,
            lease,
            job,
            LeaseState.EXPIRED,
            EndReason.LAUNCH_FAILED,
            Explanation(why, cause),
            at=now,
            actor="scheduler",
            counts=counts,
        )
    ctx.wake()


def to_pending(job: Job, too_small_at: frozenset[str] = frozenset()) -> PendingJob:
    """The job as the policy sees it. See `failed_starts.too_small_at`."""
    spec = job.spec
    placement = spec.get("placement", {})
    return PendingJob(
        job_id=job.id,
        member_id=job.member_id,
        priority=job.priority,
        deadline=job.deadline,
        created_at=job.created_at,
        not_before=job.not_before,
        providers=tuple(placement.get("providers", ())),
        accounts=tuple(placement.get("accounts", ())),
        max_session_s=placement.get("max_session_s"),
        gpu_bytes=job.gpu_bytes,
        host_bytes=job.host_bytes,
        steps_left=job.total_steps - job.head_step,
        step_time=job.step_time,
        from_folder=any(name.startswith("/") for name in _models(spec)),
        needs_gpu=spec.get("backend") == "unsloth",
        needs_no_gpu=job.is_export,
        needs_calls=job.is_chat,
        too_small_at=too_small_at,
    )


def _models(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The models that a session of a job loads."""
    asked: Mapping[str, Any] = spec.get("evaluation") or {}
    judge: Mapping[str, Any] = asked.get("judge") or {}
    return spec.get("base_model", ""), judge.get("model", "")


def why_waiting(ctx: Context, job_id: str) -> Blocker | None:
    """Why a job does not start, in words. None if it is about to start, has a lease, or is gone."""
    with ctx.uow() as tx:
        job = tx.jobs.get(job_id)
        if job is None or job.state is not JobState.QUEUED:
            return _unconfirmed(tx, job) if job is not None else None
        ended = tx.leases.of_job(job.id) if job.not_before > ctx.clock.now() else []
    blocker = why_each_waits(ctx, [job_id]).get(job_id)
    if blocker is None or not ended:
        return blocker
    last = max(ended, key=lambda lease: lease.fence)
    return replace(blocker, reason=f"{blocker.reason}; the last session ended: {last.detail or last.end_reason}")


def why_each_waits(ctx: Context, job_ids: Iterable[str], places: list[Candidate] | None = None) -> dict[str, Blocker]:
    """Why the queued ones of these jobs do not start, for a list. Jobs that are about to start are left out.

    `places` is the capacity of all accounts. Without it, their providers are asked.
    """
    with ctx.uow() as tx:
        jobs = [job for job in tx.jobs.get_many(job_ids).values() if job.state is JobState.QUEUED]
        if not jobs:
            return {}
        accounts = tx.accounts.all()
        _, by_account = tx.leases.live_counts()
        pending = [to_pending(job, too_small_at(tx, job)) for job in jobs]
    free, now = less_live(list_capacity(ctx, accounts) if places is None else places, by_account), ctx.clock.now()
    found = {job.job_id: explain(job, free, now) for job in pending}
    return {job_id: blocker for job_id, blocker in found.items() if blocker is not None}


def _unconfirmed(tx: Transaction, job: Job) -> Blocker | None:
    """The message of a provider that did not confirm the start of the job's session."""
    lease = tx.leases.live_of_job(job.id)
    if lease is None or lease.state is not LeaseState.PROVISIONING or not lease.detail:
        return None
    return Blocker(reason=f"the provider has not confirmed the session yet: {lease.detail}")
