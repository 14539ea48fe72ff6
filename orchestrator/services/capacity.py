"""The capacity of every account now: how many sessions may start there, on what machines, or why none may."""

from __future__ import annotations

import shlex
from dataclasses import replace
from functools import partial

from orchestrator.domain import diagnosis
from orchestrator.domain.accounts import Account
from orchestrator.domain.errors import InvalidError
from orchestrator.domain.scheduling import Candidate
from orchestrator.ports.providers import (
    Capacity,
    CredentialsRefused,
    ProviderError,
    ProviderUnavailable,
    QuotaExhausted,
)
from orchestrator.services.context import Context
from worker.shared import causes
from worker.shared.memory_estimate import Need

NO_ROOM = Capacity(slots=0, session_s=0)


def list_capacity(ctx: Context, accounts: list[Account]) -> list[Candidate]:
    """The capacity of every account. Live leases of ours are not deducted yet.

    All drivers are called at the same time. If one does not answer, its account is closed. A slow account is closed
    until its answer arrives, which triggers a dispatch.
    """
    offers = {a.id: capacity for a in accounts if (capacity := _without_a_call(ctx, a)) is not None}
    slow = {_call_key(a): partial(_ask, ctx, a) for a in accounts if a.id not in offers}
    answers = ctx.rooms.gather(slow, ctx.limits.patience_s, on_late=ctx.wake)
    offers |= {a.id: answers.get(_call_key(a)) or _silent(ctx, a) for a in accounts if a.id not in offers}
    return [Candidate.of(a, offers[a.id], can_call=_can_call(ctx, a.provider)) for a in accounts]


def refuse_the_too_large(ctx: Context, member_id: str, need: Need, what: str, pointer: str, remedy: str) -> None:
    """Raise `InvalidError` if a model fits on no machine of the member, as far as their memory is known."""
    with ctx.uow() as tx:
        accounts = tx.accounts.all()
    places = list_capacity(ctx, [a for a in accounts if a.member_id in (None, member_id)])
    if not places or any(not p.memory_bytes or need.on(gpu=p.gpu) <= p.memory_bytes for p in places):
        return
    largest = max(places, key=lambda place: place.memory_bytes)
    needed, there = need.on(gpu=largest.gpu) / 2**30, largest.memory_bytes / 2**30
    words = f"needs about {needed:.1f} GiB, the largest machine has {there:.1f}; {remedy}"
    raise InvalidError(f"The {what} does not fit on any machine.", [(pointer, words)])


def _silent(ctx: Context, account: Account) -> Capacity:
    """An account that has not answered yet. If it was closed before, the reason stays the same while it is asked."""
    known = ctx.rooms.last(_call_key(account))
    if known is not None and known.closed_reason:
        return replace(known, slots=0)
    return replace(NO_ROOM, closed_reason=f"not reachable (no answer within {ctx.limits.patience_s:g} s)")


def _call_key(account: Account) -> str:
    """Calls with the same key share one answer. New credentials need a new call."""
    return account.id + account.credentials


def _without_a_call(ctx: Context, account: Account) -> Capacity | None:
    """What is known of an account without a remote call. None if a call is needed."""
    if reason := not_allowed(ctx, account):
        return replace(NO_ROOM, closed_reason=reason)
    if account.not_before > ctx.clock.now():
        return replace(NO_ROOM, closed_reason=account.note or "no capacity at the moment", open_at=account.not_before)
    return _ask(ctx, account) if _is_local(ctx, account) else None


def _is_local(ctx: Context, account: Account) -> bool:
    try:
        return ctx.providers.get(account.provider).capabilities.local
    except ProviderUnavailable:
        return True  # its driver did not load and cannot be called


def _ask(ctx: Context, account: Account) -> Capacity:
    try:
        capacity = ctx.providers.get(account.provider).capacity(account)
    except CredentialsRefused as error:
        note_problem(ctx, account, str(error))
        return replace(NO_ROOM, closed_reason=str(error))
    except QuotaExhausted as error:
        return replace(NO_ROOM, closed_reason=str(error), open_at=error.until)
    except ProviderError as error:
        return replace(NO_ROOM, closed_reason=f"not reachable ({error})")
    except Exception as error:  # noqa: BLE001  one account must not block the others
        return replace(NO_ROOM, closed_reason=f"its driver failed ({type(error).__name__}: {error})")
    closed = diagnosis.closed(account.image, account.provider, causes.SMOKE) if capacity.gpu else ""
    return replace(capacity, closed_reason=capacity.closed_reason or closed)


def not_allowed(ctx: Context, account: Account) -> str:
    """What a person has to do before anything may start there, or nothing."""
    if account.paused:
        return "paused"
    entry = next((e for e in ctx.providers.entries() if e.name == account.provider), None)
    personal = entry is not None and entry.provider is not None and entry.provider.capabilities.personal
    if personal and account.consented_at is None:
        return f"waiting for its owner's consent (`trainhop accounts consent {shlex.quote(account.name)}`)"
    return account.problem


def is_offline(ctx: Context, provider: str) -> bool:
    """Whether machines of this provider have no address at which they could reach this server."""
    return ctx.public_url is None and not ctx.providers.get(provider).capabilities.same_network


def _can_call(ctx: Context, provider: str) -> bool:
    try:
        return not is_offline(ctx, provider)
    except ProviderUnavailable:
        return True  # its driver did not load, which closes it


def note_problem(ctx: Context, account: Account, problem: str) -> None:
    """Record a problem.

    The driver is not called again until the owner enters new credentials or checks these.
    """
    with ctx.uow() as tx:
        current = tx.accounts.get(account.id)
        if current is not None and current.credentials == account.credentials:
            current.problem = problem
            tx.accounts.save(current)


def less_live(places: list[Candidate], by_account: dict[str, int]) -> list[Candidate]:
    """Places with the slots that our live leases take up deducted."""
    return [replace(p, slots=max(0, p.slots - by_account.get(p.account_id, 0))) for p in places]
