"""Machines of one's own: a one-time code, the account that a machine becomes with it, reports, drains, and the end."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from orchestrator.domain.accounts import Account, Actor, OneTimeCode, Role
from orchestrator.domain.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError
from orchestrator.domain.jobs import Lease
from orchestrator.domain.lifecycle import LeaseState
from orchestrator.ports.joining import JoinedMachine, SupportsJoining
from orchestrator.ports.providers import Provider, ProviderUnavailable
from orchestrator.ports.repository import Transaction
from orchestrator.services.accounts import owned
from orchestrator.services.context import Context, new_id
from worker.shared import wheel
from worker.shared.joined_messages import JOIN_PROTOCOL, Joined, JoinRequest, MachineReport, Orders, WorkerFile

CODE_LASTS_S = 24 * 3600.0
REMEMBERED_S = 60 * 86_400.0
"""Until then a machine with an old code gets the reason why it does not work."""
MAX_MACHINES = 500
"""Of one server."""
WRONG_CLOCK_S = 60.0
_NEW_CODE = "Create a new one with `trainhop accounts code`"


def provider_of_machines(ctx: Context) -> str:
    """The provider that machines join. Raises `NotFoundError` if none is installed."""
    for entry in ctx.providers.entries():
        if isinstance(entry.provider, SupportsJoining):
            return entry.name
    raise NotFoundError("No installed provider lets machines join. Install one that does.")


def _driver(ctx: Context, provider: str) -> SupportsJoining:
    found: Provider = ctx.providers.get(provider)
    if not isinstance(found, SupportsJoining):
        raise NotFoundError(f"Machines cannot join {provider}.")
    return found


def make_code(ctx: Context, actor: Actor, *, shared: bool = False) -> tuple[str, OneTimeCode]:
    """A code with which one machine joins, for the actor's own jobs. It is shown only once.

    With `shared`, which needs an admin, the machine is for the jobs of all members.
    """
    if shared and actor.role is not Role.ADMIN:
        raise ForbiddenError("Only an admin can add a machine for all members. Ask an admin, or leave out `shared`.")
    now, provider = ctx.clock.now(), provider_of_machines(ctx)
    code = f"thm_{ctx.tokens.new().removeprefix('th_')}"
    made = OneTimeCode(
        code_hash=ctx.tokens.hash(code),
        job_id=None,
        member_id=actor.member_id,
        created_at=now,
        expires_at=now + CODE_LASTS_S,
        provider=provider,
        shared=shared,
    )
    with ctx.uow() as tx:
        tx.codes.delete_expired(now - REMEMBERED_S)
        tx.codes.add(made)
    return code, made


def join(ctx: Context, request: JoinRequest) -> Joined:
    """Exchange a code for a machine's account and token. If the same run repeats the request, it gets the same answer.

    After every refusal but 'used' and 'expired' the code can be used again.
    """
    check_protocol(request.protocol)
    with ctx.uow() as tx:
        known = tx.codes.get(ctx.tokens.hash(request.code))
        if known is None or not known.provider:
            raise NotFoundError(f"The server does not know this code. {_NEW_CODE}.")
        if known.account_id is not None:
            account = tx.accounts.get(known.account_id)
            if account is None or known.nonce != request.nonce:
                name = account.name if account is not None else "a machine that has left"
                raise ConflictError(f"This code was already used by {name}. {_NEW_CODE}.")
        else:
            account = _new_account(ctx, tx, known, request)
            known.used_at, known.account_id, known.nonce = ctx.clock.now(), account.id, request.nonce
            tx.codes.save(known)
    return Joined(account=account.id, name=account.name, token=_token(ctx, account.id), instance=ctx.instance_id)


def check_protocol(theirs: int) -> None:
    """Raise `InvalidError` if the agent of a machine does not understand this server."""
    if theirs == JOIN_PROTOCOL:
        return
    older = "machine" if theirs < JOIN_PROTOCOL else "server"
    raise InvalidError(
        f"The server and this machine have different versions of Trainhop (protocol {JOIN_PROTOCOL} and {theirs}). "
        f"Upgrade the {older}."
    )


def _new_account(ctx: Context, tx: Transaction, code: OneTimeCode, request: JoinRequest) -> Account:
    now = ctx.clock.now()
    if code.expires_at <= now:
        raise ConflictError(f"This code has expired: it worked for {CODE_LASTS_S / 3600:.0f} hours. {_NEW_CODE}.")
    if tx.members.get_for_share(code.member_id) is None:
        raise NotFoundError("The member who created this code was removed. Ask an admin.")
    accounts = tx.accounts.all()
    if sum(a.token_hash is not None for a in accounts) >= MAX_MACHINES:
        raise ConflictError(f"This server has {MAX_MACHINES} joined machines already. Remove one first.")
    taken = {a.name for a in accounts}
    wanted = " ".join((request.name or request.offer.hostname).split())[:80] or "machine"
    name, number = wanted, 2
    while name in taken:
        name, number = f"{wanted}-{number}", number + 1
    account_id = new_id("account", now)
    made = Account(
        id=account_id,
        provider=code.provider,
        member_id=None if code.shared else code.member_id,
        name=name,
        config={},
        consented_at=None if code.shared else now,
        created_at=now,
        token_hash=ctx.tokens.hash(_token(ctx, account_id)),
    )
    tx.accounts.add(made)
    return made


def _token(ctx: Context, account_id: str) -> str:
    return ctx.tokens.for_lease(f"machine {account_id}")


def holds(ctx: Context, account_id: str, token: str) -> Account | None:
    """The account of this machine if the token is its own and it has not left. None otherwise."""
    with ctx.uow() as tx:
        account = tx.accounts.get(account_id)
    known = account.token_hash if account is not None else None
    return account if known and hmac.compare_digest(known, ctx.tokens.hash(token)) else None


def report(ctx: Context, account: Account, message: MachineReport) -> Orders:
    """Note a machine's report and return its orders. Raises `InvalidError` for another version."""
    check_protocol(message.protocol)
    driver = _driver(ctx, account.provider)
    before = driver.machine(account.id)
    orders = driver.exchange(account, message)
    if before is None or before.seen_at == 0.0 or before.offer != message.offer:
        ctx.wake()
    worker = wheel.build(adapters=True)
    return orders.model_copy(update={"worker": WorkerFile(name=worker.name, sha256=worker.sha256)})


def has_orders(ctx: Context, account: Account) -> bool:
    """Whether the machine has new orders since its last report."""
    return _driver(ctx, account.provider).has_orders(account.id)


def leave(ctx: Context, account: Account) -> None:
    """The machine leaves. Raises `ConflictError` while it has sessions."""
    with ctx.uow() as tx:
        _, busy = tx.leases.live_counts()
        if busy.get(account.id):
            raise ConflictError(f"{account.name} still has running sessions ({busy[account.id]}). Stop them first.")
        tx.accounts.delete(account.id)
    _driver(ctx, account.provider).forget_machine(account.id)


def drain(ctx: Context, actor: Actor, account_id: str) -> tuple[Account, int]:
    """Start nothing new on an account, and have its sessions save and end. Returns the number of these sessions.

    A session on a machine that cannot call the server ends at its own time limit.
    """
    with ctx.uow() as tx:
        account = owned(tx, actor, account_id)
        account.paused = True
        tx.accounts.save(account)
        live = [lease for lease in tx.leases.live() if lease.account_id == account.id and not lease.offline]
    return account, sum(_ask_to_leave(ctx, actor, lease) for lease in live)


def _ask_to_leave(ctx: Context, actor: Actor, lease: Lease) -> bool:
    """Whether the session will save and end. One that has not started yet has nothing to save."""
    with ctx.uow() as tx:
        job = tx.jobs.get(lease.job_id)
        current = tx.leases.live_of_job(lease.job_id)
        if job is None or current is None or current.id != lease.id or current.state is not LeaseState.ACTIVE:
            return False
        current.to(LeaseState.DRAINING)
        tx.leases.save(current)
        job.note("job.handover_requested", at=ctx.clock.now(), actor=actor.name, lease_id=lease.id)
        tx.jobs.save(job)
    return True


@dataclass(frozen=True, kw_only=True)
class MachineState:
    """A joined machine for people. `quiet_s` are the seconds since its last report, None if it has not reported yet."""

    machine: JoinedMachine
    quiet_s: float | None
    warning: str


def state_of(ctx: Context, account: Account) -> MachineState | None:
    """The last report of the machine that this account is. None if it is none, or has never reported."""
    if account.token_hash is None:
        return None
    try:
        found = _driver(ctx, account.provider).machine(account.id)
    except (ProviderUnavailable, NotFoundError):
        return None
    if found is None:
        return None
    ahead = found.ahead_s
    wrong = abs(ahead) > WRONG_CLOCK_S
    warning = f"Its clock is {abs(ahead) / 60:.0f} minutes {'ahead' if ahead > 0 else 'behind'}." if wrong else ""
    return MachineState(
        machine=found, quiet_s=ctx.clock.now() - found.seen_at if found.seen_at else None, warning=warning
    )
