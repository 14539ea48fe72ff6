"""Notebooks that people open themselves: a one-time code, and its exchange for one lease of one job."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.domain.accounts import Account, Actor, OneTimeCode
from orchestrator.domain.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError, UnavailableError
from orchestrator.domain.jobs import Job, Lease
from orchestrator.domain.lifecycle import JobState
from orchestrator.domain.scheduling import Candidate, Placement, budget, fits
from orchestrator.ports.providers import Capacity
from orchestrator.ports.repository import Transaction
from orchestrator.services.access import owned_job
from orchestrator.services.context import Context, new_id
from orchestrator.services.dispatch import create_lease, to_pending
from worker.shared.messages import Ticket
from worker.shared.notebook_messages import Claimed, ClaimRequest
from worker.shared.places import enable_gpu
from worker.shared.wire import PROTOCOL_VERSION

CODE_LASTS_S = 24 * 3600.0
REMEMBERED_S = 60 * 86_400.0
"""Until then a notebook with an old code gets the reason why it does not work. Then the code is deleted."""

INSTALL_S = 600.0
"""Time from a notebook's claim to its worker's first message. Packages are installed in between."""


def provider_of_notebooks(ctx: Context) -> str:
    """The provider on which notebooks are counted. Raises `UnavailableError` if none is installed."""
    for entry in ctx.providers.entries():
        if entry.provider is not None and entry.provider.capabilities.notebooks:
            return entry.name
    raise UnavailableError("No installed provider supports notebooks. Install one that does.")


def check_job(ctx: Context, actor: Actor, job_id: str) -> Job:
    """The actor's own job, if anything is left to train. Otherwise raises an error in words."""
    with ctx.uow() as tx:
        return _own_job(tx, actor, job_id)


def _own_job(tx: Transaction, actor: Actor, job_id: str) -> Job:
    job = owned_job(tx, actor, job_id)
    if job.member_id != actor.member_id:
        raise ForbiddenError("Only the job's owner can create a notebook for it. Ask the owner.")
    _refuse_ended(job)
    return job


def make_code(
    ctx: Context, actor: Actor, job_id: str, *, store: str = "", mailbox: str = ""
) -> tuple[str, OneTimeCode]:
    """A new code for the actor's own job. It is shown only once. Raises as `check_job`."""
    now = ctx.clock.now()
    with ctx.uow() as tx:
        job = _own_job(tx, actor, job_id)
        _account(ctx, tx, job.member_id)
        code = f"thc_{ctx.tokens.new().removeprefix('th_')}"
        claim = OneTimeCode(
            code_hash=ctx.tokens.hash(code),
            job_id=job.id,
            member_id=job.member_id,
            created_at=now,
            expires_at=now + CODE_LASTS_S,
            store=store,
            mailbox=mailbox,
        )
        tx.codes.delete_expired(now - REMEMBERED_S)
        tx.codes.add(claim)
    return code, claim


def claim(ctx: Context, request: ClaimRequest, *, offline: bool = False) -> Claimed:
    """Exchange a code for a lease. If the same run repeats the request, it gets the same result.

    `offline`: its machine cannot call. Every refusal leaves the job as it is. After all refusals but 'used' and
    'expired' the code can be tried again.
    """
    if request.protocol != PROTOCOL_VERSION:
        raise InvalidError("This notebook belongs to another version of the server. Create a new one.")
    with ctx.uow() as tx:
        account = _account(ctx, tx, _known(ctx, tx, request).member_id)
    # Without its credentials: no remote call may delay the start of a notebook.
    room = ctx.providers.get(account.provider).capacity(replace(account, credentials=""))
    with ctx.uow() as tx:
        known = _known(ctx, tx, request)
        job = tx.jobs.get(known.job_id or "")
        assert job is not None
        if known.lease_id is not None:
            return _again(ctx, tx, known, job, request)
        lease = _lease(ctx, tx, job, account, room, request, offline=offline)
        known.used_at, known.lease_id, known.nonce = ctx.clock.now(), lease.id, request.nonce
        tx.codes.save(known)
        return _claimed(ctx, lease, job)


def _known(ctx: Context, tx: Transaction, request: ClaimRequest) -> OneTimeCode:
    known = tx.codes.get(ctx.tokens.hash(request.code))
    if known is None or known.job_id is None:
        raise NotFoundError("The server does not know this notebook's code. Create a new notebook for the job.")
    if known.lease_id is None and known.expires_at <= ctx.clock.now():
        ago, lasts = ctx.clock.now() - known.created_at, CODE_LASTS_S
        raise ConflictError(
            f"This notebook's code has expired: it is {_duration(ago)} old and worked for "
            f"{_duration(lasts)}. {_anew(known.job_id or '')}"
        )
    return known


def _again(ctx: Context, tx: Transaction, known: OneTimeCode, job: Job, request: ClaimRequest) -> Claimed:
    lease = tx.leases.get(known.lease_id or "")
    if lease is not None and known.nonce == request.nonce and lease.state.is_live and lease.nonce is None:
        return _claimed(ctx, lease, job)
    ago = _duration(ctx.clock.now() - (known.used_at or 0.0))
    still = " and its session is still running" if lease is not None and lease.state.is_live else ""
    raise ConflictError(f"This notebook's code was already used {ago} ago{still}. {_anew(job.id)}")


def _anew(job_id: str) -> str:
    return f"Create a new notebook with `trainhop notebook {job_id}`."


def _refuse_ended(job: Job) -> None:
    if job.state is JobState.SUCCEEDED:
        raise ConflictError(f"The job has already succeeded. Download the adapter with `trainhop adapter {job.id}`.")
    if job.state.is_final:
        raise ConflictError(f"The job is {job.state}. Retry it first with `trainhop retry {job.id}`.")


def _lease(
    ctx: Context, tx: Transaction, job: Job, account: Account, room: Capacity, request: ClaimRequest, *, offline: bool
) -> Lease:
    _refuse_ended(job)
    if job.state is JobState.PAUSED:
        raise ConflictError(f"The job is paused. Resume it with `trainhop resume {job.id}`, then run this cell again.")
    if job.state.holds_lease:
        raise ConflictError(_where_it_runs(ctx, tx, job))
    place = _place(account, room, request, can_call=not offline)
    obstacle = fits(to_pending(job), place)
    if obstacle is not None:
        raise InvalidError(
            f"{obstacle.reason}. The job stays in the queue. Use a machine that fits it.",
            [("/hardware", obstacle.reason)],
        )
    now = ctx.clock.now()
    chosen = Placement(
        job_id=job.id, account_id=account.id, provider=account.provider, budget_s=budget(to_pending(job), place)
    )
    lease = create_lease(ctx, tx, chosen, now, offline=offline, actor="notebook")
    assert lease is not None
    lease.expires_at = now + INSTALL_S
    tx.leases.save(lease)
    return lease


def _place(account: Account, room: Capacity, request: ClaimRequest, *, can_call: bool) -> Candidate:
    """The notebook's machine, as the scheduler would see it."""
    machine = request.hardware
    if machine.device == "cpu" and (remedy := enable_gpu(request.runs_in)):
        raise InvalidError(f"This runtime has no GPU: {remedy}, then run this cell again.", [("/hardware", "no GPU")])
    return Candidate(
        account_id=account.id,
        provider=account.provider,
        name=account.name,
        member_id=account.member_id,
        slots=1,
        session_s=room.session_s,
        memory_bytes=machine.memory_bytes or machine.ram_bytes,
        gpu=machine.device == "cuda",
        start_up_s=room.start_up_s,
        closed_reason="paused" if account.paused else "",
        can_call=can_call,
    )


def _where_it_runs(ctx: Context, tx: Transaction, job: Job) -> str:
    lease, now = tx.leases.live_of_job(job.id), ctx.clock.now()
    if lease is None:
        return "The job is being moved to another machine. Try again in a minute."
    account = tx.accounts.get(lease.account_id)
    machine = str(lease.hardware.get("name") or "a machine that is starting")
    where = f"{account.name}, {machine}" if account else machine
    return (
        f"The job has been running on {where} for {_duration(now - lease.created_at)} (step "
        f"{lease.step} of {job.total_steps}). "
        f"This session ends in at most {_duration(max(0.0, lease.deadline_at - now))}. Run this cell again then."
    )


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _claimed(ctx: Context, lease: Lease, job: Job) -> Claimed:
    return Claimed(
        ticket=Ticket(
            lease=lease.id,
            token=ctx.tokens.for_lease(lease.id),
            budget_s=lease.budget_s,
            server_url=ctx.public_url or ctx.server_url(),
        ),
        fence=lease.fence,
        job=job.id,
        name=job.name,
        step=job.head_step,
        total_steps=job.total_steps,
    )


def _account(ctx: Context, tx: Transaction, member_id: str) -> Account:
    """The account on which the member's own notebooks are counted. Opening a notebook is consent."""
    accounts, provider = tx.accounts.all(), provider_of_notebooks(ctx)
    account = next((a for a in accounts if a.provider == provider and a.member_id == member_id), None)
    if account is not None:
        return account
    member, now = tx.members.get_for_share(member_id), ctx.clock.now()
    if member is None:
        raise NotFoundError("The member who created this notebook was removed. Ask an admin.")
    name = f"{member.name[:80]}-notebook"
    while any(a.name == name for a in accounts):
        name += "-2"
    made = Account(
        id=new_id("account", now),
        provider=provider,
        member_id=member_id,
        name=name,
        config={},
        consented_at=now,
        created_at=now,
    )
    tx.accounts.add(made)
    return made
