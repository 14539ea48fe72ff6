"""Giving queued jobs to free machines, and saying why a job still waits."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from functools import partial

from orchestrator.domain import diagnosis
from orchestrator.domain.errors import ConflictError
from orchestrator.domain.lifecycle import EndReason, JobState, LeaseState
from orchestrator.domain.model import Account, Job, Lease
from orchestrator.domain.scheduling import Blocker, Candidate, PendingJob, Placement, explain, match
from orchestrator.ports.providers import (
    Capacity,
    Context,
    CredentialsRefused,
    LaunchRejected,
    LaunchRequest,
    ProviderError,
    ProviderUnavailable,
    QuotaExhausted,
    StoreError,
)
from orchestrator.ports.repository import Transaction
from orchestrator.services.ids import new_id
from orchestrator.services.leases import release_lease
from orchestrator.services.offline_sessions import is_offline, offline_bundle
from worker.shared import causes

QUEUE_DEPTHS = (16, 128, 1024)
"""Queued jobs of each member that one round looks at: more only while machines stay free, because some jobs fit none."""

LAUNCHES_PER_ROUND = 64
STORE_REST_S = 60.0
"""How long an account is left alone after the store could not open uploads for a machine of it."""
FULL_REST_S = 300.0
"""The same after it had no room, where it does not say until when."""
NO_ROOM = Capacity(slots=0, session_s=0)


@dataclass(frozen=True, kw_only=True)
class _Claim:
    lease: Lease
    account: Account


def dispatch(ctx: Context) -> int:
    """One round: claim jobs for free machines in one transaction, then launch outside of it. Returns the number claimed."""
    with ctx.uow() as tx:
        accounts = tx.accounts() if tx.has_queued() else []
    places = list_capacity(ctx, accounts)
    if not any(p.slots and not p.closed_reason for p in places):
        return 0
    with ctx.uow() as tx:
        claims = _claim(ctx, tx, places, {a.id: a for a in accounts})
        ctx.launching.update(c.lease.id for c in claims)
    for claim in claims:
        ctx.spawn(lambda claim=claim: _launch(ctx, claim))
    return len(claims)


def list_capacity(ctx: Context, accounts: list[Account]) -> list[Candidate]:
    """What every account offers, our own live leases not yet deducted; a driver that does not answer is shut, not gone.

    Accounts are asked side by side. One that takes its time counts for nothing until its answer is here, which asks for a
    dispatch.
    """
    rooms = {a.id: room for a in accounts if (room := _unasked(ctx, a)) is not None}
    slow = {_question(a): partial(_room, ctx, a) for a in accounts if a.id not in rooms}
    said = ctx.rooms.gather(slow, ctx.limits.patience_s, on_late=ctx.wake)
    silent = replace(NO_ROOM, closed_reason=f"cannot be reached (no answer within {ctx.limits.patience_s:g} s)")
    rooms |= {a.id: said.get(_question(a), silent) for a in accounts if a.id not in rooms}
    return [
        Candidate(account_id=a.id, provider=a.provider, name=a.name, member_id=a.member_id, **vars(rooms[a.id]))
        for a in accounts
    ]


def _question(account: Account) -> str:
    """What was asked with other credentials is no answer."""
    return account.id + account.credentials


def _unasked(ctx: Context, account: Account) -> Capacity | None:
    """What is known of an account without a call to anybody; None if it has to be asked."""
    if reason := _not_allowed(ctx, account):
        return replace(NO_ROOM, closed_reason=reason)
    if account.not_before > ctx.clock.now():
        return replace(NO_ROOM, closed_reason=account.note or "no room at the moment", open_at=account.not_before)
    return _room(ctx, account) if _is_at_hand(ctx, account) else None


def _is_at_hand(ctx: Context, account: Account) -> bool:
    try:
        return ctx.providers.get(account.provider).capabilities.local
    except ProviderUnavailable:
        return True  # its driver did not load, and cannot be asked


def _room(ctx: Context, account: Account) -> Capacity:
    try:
        room = ctx.providers.get(account.provider).room(account)
    except CredentialsRefused as error:
        _note_problem(ctx, account, str(error))
        return replace(NO_ROOM, closed_reason=str(error))
    except QuotaExhausted as error:
        return replace(NO_ROOM, closed_reason=str(error), open_at=error.until)
    except ProviderError as error:
        return replace(NO_ROOM, closed_reason=f"cannot be reached ({error})")
    except Exception as error:  # noqa: BLE001  told where people look; one account must not keep all others waiting
        return replace(NO_ROOM, closed_reason=f"its driver failed ({type(error).__name__}: {error})")
    closed = diagnosis.closed(account.image, account.provider, causes.SMOKE) if room.gpu else ""
    return replace(room, closed_reason=room.closed_reason or closed)


def _not_allowed(ctx: Context, account: Account) -> str:
    """What a person has to do before anything may start there."""
    if account.paused:
        return "paused"
    entry = next((e for e in ctx.providers.entries() if e.name == account.provider), None)
    personal = entry is not None and entry.provider is not None and entry.provider.capabilities.personal
    if personal and account.consented_at is None:
        return f"waits for its owner's consent (`trainhop accounts consent {shlex.quote(account.name)}`)"
    return account.problem


def _note_problem(ctx: Context, account: Account, problem: str) -> None:
    """Nothing is asked in vain again before the owner has entered new credentials or checked these."""
    with ctx.uow() as tx:
        current = tx.account(account.id)
        if current is not None and current.credentials == account.credentials:
            current.problem = problem
            tx.save_account(current)


def less_live(places: list[Candidate], by_account: dict[str, int]) -> list[Candidate]:
    """Places with the slots that our live leases take up deducted."""
    return [replace(p, slots=max(0, p.slots - by_account.get(p.account_id, 0))) for p in places]


def _claim(ctx: Context, tx: Transaction, places: list[Candidate], accounts: dict[str, Account]) -> list[_Claim]:
    now = ctx.clock.now()
    by_member, by_account = tx.live_counts()
    free = less_live(places, by_account)
    room = min(LAUNCHES_PER_ROUND, sum(p.slots for p in free if not p.closed_reason))
    if room == 0:
        return []
    chosen: list[Placement] = []
    for depth in QUEUE_DEPTHS:
        waiting = [to_pending(job) for job in tx.queued(max(depth, room), now)]
        chosen = match(waiting, free, by_member, now)[:LAUNCHES_PER_ROUND]
        if len(chosen) >= room or len(waiting) < depth:
            break
    claims = (create_lease(ctx, tx, m, now, offline=is_offline(ctx, m.provider)) for m in chosen)
    return [_Claim(lease=lease, account=accounts[lease.account_id]) for lease in claims if lease is not None]


def create_lease(
    ctx: Context, tx: Transaction, chosen: Placement, now: float, *, offline: bool, actor: str = "scheduler"
) -> Lease | None:
    """Write the next lease of a queued job; None if the job is not queued any more."""
    job = tx.job(chosen.job_id)
    if job is None or job.state is not JobState.QUEUED:
        return None
    lease_id = new_id("lease", now)
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
        first_step=job.head_step,
        step=job.head_step,
    )
    tx.add_lease(lease)
    tx.save_job(job)
    return lease


def _launch(ctx: Context, claim: _Claim) -> None:
    lease = claim.lease
    try:
        if lease.offline and not _is_live(ctx, lease):
            return  # cancelled while it waited for its turn; one that can call is told so when it does
        external_id = ctx.providers.get(lease.provider).launch(_request(ctx, claim))
    except CredentialsRefused as error:
        _note_problem(ctx, claim.account, str(error))
        _launch_failed(ctx, lease.id, str(error), counts=False)
    except ConflictError:
        return  # its model cannot be had: the lease has ended, and its job says why
    except ProviderUnavailable as error:
        _note_silence(
            ctx, lease.id, str(error)
        )  # it may have gone through: reconciling asks the provider and then decides
    except StoreError as error:
        _not_ready(ctx, claim, f"the store takes nothing now ({error})", ctx.clock.now() + STORE_REST_S)
    except QuotaExhausted as error:
        _not_ready(ctx, claim, str(error), error.until)
    except (LaunchRejected, ProviderError) as error:
        _launch_failed(ctx, lease.id, str(error), cause=causes.LAUNCH)
    else:
        with ctx.uow() as tx:
            tx.note_external_id(lease.id, external_id)
    finally:
        ctx.launching.discard(lease.id)


def _is_live(ctx: Context, lease: Lease) -> bool:
    with ctx.uow() as tx:
        current = tx.lease(lease.id)
    return current is not None and current.state.is_live


def _request(ctx: Context, claim: _Claim) -> LaunchRequest:
    lease = claim.lease
    ready = offline_bundle(ctx, lease) if lease.offline else None
    near = ctx.providers.get(lease.provider).capabilities.same_network
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
    )


def _not_ready(ctx: Context, claim: _Claim, why: str, until: float | None) -> None:
    """The job has no fault in it, and is none the worse for it; the account rests for a while."""
    now = ctx.clock.now()
    with ctx.uow() as tx:
        account = tx.account(claim.account.id)
        if account is not None:
            account.not_before = until if until is not None and until > now else now + FULL_REST_S
            account.note = why
            tx.save_account(account)
    _launch_failed(ctx, claim.lease.id, why, counts=False)


def _note_silence(ctx: Context, lease_id: str, why: str) -> None:
    """Keep the provider's words for those who wonder why nothing starts."""
    with ctx.uow() as tx:
        lease = tx.lease(lease_id)
        if lease is not None and lease.state is LeaseState.PROVISIONING:
            lease.detail = why
            tx.save_lease(lease)


def _launch_failed(ctx: Context, lease_id: str, why: str, *, counts: bool = True, cause: str = "") -> None:
    now = ctx.clock.now()
    with ctx.uow() as tx:
        lease = tx.lease(lease_id)
        job = tx.job(lease.job_id) if lease else None
        if lease is None or job is None or not lease.state.is_live:
            return
        lease.collected_at = now
        release_lease(
            tx,
            lease,
            job,
            LeaseState.EXPIRED,
            EndReason.LAUNCH_FAILED,
            detail=why,
            at=now,
            actor="scheduler",
            counts=counts,
            cause=cause,
        )
    ctx.wake()


def to_pending(job: Job) -> PendingJob:
    """The job as the policy sees it."""
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
        from_folder=spec.get("base_model", "").startswith("/"),
        needs_gpu=spec.get("backend") == "unsloth",
    )


def why_waiting(ctx: Context, job: Job) -> Blocker | None:
    """What keeps a job from starting, in words; None if it is about to, or at work."""
    now = ctx.clock.now()
    if job.state is not JobState.QUEUED:
        return _unconfirmed(ctx, job)
    with ctx.uow() as tx:
        accounts = tx.accounts()
        _, by_account = tx.live_counts()
        ended = tx.leases_of(job.id) if job.not_before > now else []
    found = explain(to_pending(job), less_live(list_capacity(ctx, accounts), by_account), now)
    if found is None or not ended:
        return found
    last = max(ended, key=lambda lease: lease.fence)
    return replace(found, reason=f"{found.reason}; the last session ended: {last.detail or last.end_reason}")


def _unconfirmed(ctx: Context, job: Job) -> Blocker | None:
    """The words of a provider that did not say whether it starts the job's session."""
    with ctx.uow() as tx:
        lease = tx.live_lease(job.id)
    if lease is None or lease.state is not LeaseState.PROVISIONING or not lease.detail:
        return None
    return Blocker(reason=f"it is not known yet whether a session starts: {lease.detail}")
