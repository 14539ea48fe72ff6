"""Notebooks that people open themselves: a one-time code, and its exchange for one lease of one job."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.domain.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError
from orchestrator.domain.lifecycle import JobState
from orchestrator.domain.model import Account, Job, Lease, OneTimeCode
from orchestrator.domain.scheduling import Candidate, Placement, budget, fits
from orchestrator.ports.providers import Capacity, Context
from orchestrator.ports.repository import Transaction
from orchestrator.services.dispatch import create_lease, to_pending
from orchestrator.services.ids import new_id
from orchestrator.services.jobs import Actor
from worker.shared.messages import PROTOCOL_VERSION, Ticket
from worker.shared.notebook_messages import Claimed, ClaimRequest

PROVIDER = "colab"
"""The provider of every notebook that a person opens, whoever runs the machine under it."""

CODE_LASTS_S = 24 * 3600.0
REMEMBERED_S = 60 * 86_400.0
"""An old code is still told why it does not work; then it is forgotten."""

INSTALL_S = 600.0
"""What a notebook may take from its claim to its worker's first word: packages are installed in between."""

_NO_GPU = {
    "colab": "in the menu choose Runtime > Change runtime type > T4 GPU",
    "kaggle": "in the side bar choose Session options > Accelerator > GPU T4 x2",
}


def check_job(ctx: Context, actor: Actor, job_id: str) -> Job:
    """The actor's own job, if anything is left to train; raises in words otherwise."""
    with ctx.uow() as tx:
        return _own_job(tx, actor, job_id)


def _own_job(tx: Transaction, actor: Actor, job_id: str) -> Job:
    job = tx.job(job_id)
    if job is None or not actor.may_see(job.member_id):
        raise NotFoundError(f"there is no job {job_id}")
    if job.member_id != actor.member_id:
        raise ForbiddenError("a notebook trains its owner's own job: only the job's owner can make one")
    _refuse_ended(job)
    return job


def make_code(
    ctx: Context, actor: Actor, job_id: str, *, store: str = "", mailbox: str = ""
) -> tuple[str, OneTimeCode]:
    """A fresh code for the actor's own job; it is shown this once. Raises as `check_job`."""
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
        tx.forget_claims(now - REMEMBERED_S)
        tx.add_claim(claim)
    return code, claim


def claim(ctx: Context, asked: ClaimRequest, *, offline: bool = False) -> Claimed:
    """Exchange a code for a lease; the same run asking again gets the same answer. `offline`: its machine cannot call.

    Every refusal leaves the job as it is, and all but 'used' and 'expired' leave the code good for another try.
    """
    if asked.protocol != PROTOCOL_VERSION:
        raise InvalidError("this notebook is older or newer than its server: make a new one")
    with ctx.uow() as tx:
        account = _account(ctx, tx, _known(ctx, tx, asked).member_id)
    # As of an account without credentials: nothing is asked of anybody before a notebook may begin.
    room = ctx.providers.get(PROVIDER).room(replace(account, credentials=""))
    with ctx.uow() as tx:
        known = _known(ctx, tx, asked)
        job = tx.job(known.job_id)
        assert job is not None
        if known.lease_id is not None:
            return _again(ctx, tx, known, job, asked)
        lease = _lease(ctx, tx, job, account, room, asked, offline=offline)
        known.used_at, known.lease_id, known.nonce = ctx.clock.now(), lease.id, asked.nonce
        tx.save_claim(known)
        return _claimed(ctx, lease, job)


def _known(ctx: Context, tx: Transaction, asked: ClaimRequest) -> OneTimeCode:
    known = tx.claim(ctx.tokens.hash(asked.code))
    if known is None:
        raise NotFoundError("this server does not know the notebook's code: make a new notebook for the job")
    if known.lease_id is None and known.expires_at <= ctx.clock.now():
        ago, lasts = ctx.clock.now() - known.created_at, CODE_LASTS_S
        raise ConflictError(
            f"this notebook was made {_duration(ago)} ago and its code worked for {_duration(lasts)}: {_anew(known.job_id)}"
        )
    return known


def _again(ctx: Context, tx: Transaction, known: OneTimeCode, job: Job, asked: ClaimRequest) -> Claimed:
    lease = tx.lease(known.lease_id or "")
    if lease is not None and known.nonce == asked.nonce and lease.state.is_live and lease.nonce is None:
        return _claimed(ctx, lease, job)
    ago = _duration(ctx.clock.now() - (known.used_at or 0.0))
    still = " and still trains" if lease is not None and lease.state.is_live else ""
    raise ConflictError(f"this notebook's code was used {ago} ago{still}; a code works once: {_anew(job.id)}")


def _anew(job_id: str) -> str:
    return f"make a new notebook with `trainhop notebook {job_id}`"


def _refuse_ended(job: Job) -> None:
    if job.state is JobState.SUCCEEDED:
        raise ConflictError(f"the job is done and nothing is left to train: fetch it with `trainhop adapter {job.id}`")
    if job.state.is_final:
        raise ConflictError(f"the job has {job.state}: queue it again with `trainhop retry {job.id}` first")


def _lease(
    ctx: Context, tx: Transaction, job: Job, account: Account, room: Capacity, asked: ClaimRequest, *, offline: bool
) -> Lease:
    _refuse_ended(job)
    if job.state is JobState.PAUSED:
        raise ConflictError(
            f"the job is paused: let it go on with `trainhop resume {job.id}`, then run this cell again"
        )
    if job.state.holds_lease:
        raise ConflictError(_where_it_runs(ctx, tx, job))
    place = _place(account, room, asked)
    obstacle = fits(to_pending(job), place)
    if obstacle is not None:
        raise InvalidError(
            f"{obstacle.reason}; the job waits for a machine that fits", [("/hardware", obstacle.reason)]
        )
    now = ctx.clock.now()
    chosen = Placement(job_id=job.id, account_id=account.id, provider=PROVIDER, budget_s=budget(to_pending(job), place))
    lease = create_lease(ctx, tx, chosen, now, offline=offline, actor="notebook")
    assert lease is not None
    lease.expires_at = now + INSTALL_S
    tx.save_lease(lease)
    return lease


def _place(account: Account, room: Capacity, asked: ClaimRequest) -> Candidate:
    """The machine that the notebook has, as the scheduler would see it."""
    machine = asked.hardware
    if machine.device == "cpu" and (remedy := _NO_GPU.get(asked.runs_in)):
        raise InvalidError(f"this runtime has no GPU: {remedy}, then run this cell again", [("/hardware", "no GPU")])
    return Candidate(
        account_id=account.id,
        provider=PROVIDER,
        name=account.name,
        member_id=account.member_id,
        slots=1,
        session_s=room.session_s,
        memory_bytes=machine.memory_bytes or machine.ram_bytes,
        gpu=machine.device == "cuda",
        start_up_s=room.start_up_s,
        closed_reason="paused" if account.paused else "",
    )


def _where_it_runs(ctx: Context, tx: Transaction, job: Job) -> str:
    lease, now = tx.live_lease(job.id), ctx.clock.now()
    if lease is None:
        return "the job is being moved: try again in a minute"
    account = tx.account(lease.account_id)
    machine = str(lease.hardware.get("name") or "a machine that starts up")
    where = f"{account.name}, {machine}" if account else machine
    return (
        f"the job is at work on {where} for {_duration(now - lease.created_at)}, at step {lease.step} of {job.total_steps}; "
        f"its time there ends in {_duration(max(0.0, lease.deadline_at - now))} at the latest: run this cell again then"
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
    """Where the member's own notebooks are counted; opening one is consent."""
    accounts = tx.accounts()
    found = next((a for a in accounts if a.provider == PROVIDER and a.member_id == member_id), None)
    if found is not None:
        return found
    member, now = tx.hold_member(member_id), ctx.clock.now()
    if member is None:
        raise NotFoundError("whoever made this notebook is no longer a member of this server")
    name = f"{member.name[:80]}-notebook"
    while any(a.name == name for a in accounts):
        name += "-2"
    made = Account(
        id=new_id("account", now),
        provider=PROVIDER,
        member_id=member_id,
        name=name,
        config={},
        consented_at=now,
        created_at=now,
    )
    tx.add_account(made)
    return made
