"""The pages of the fleet (running sessions, waiting jobs, last 24 hours) and of accounts."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from orchestrator.domain.accounts import Account, Actor, Role
from orchestrator.domain.diagnosis import summary
from orchestrator.domain.errors import InvalidError, TrainhopError
from orchestrator.domain.scheduling import Candidate
from orchestrator.entrypoints.dashboard import own_machines, setup
from orchestrator.entrypoints.dashboard.render import Viewer, by_script, page, piece
from orchestrator.entrypoints.http.dependencies import Server, ServerDep
from orchestrator.services import accounts, capacity, dispatch, hub_tokens, providers, tracker_logins
from orchestrator.services.context import first_id

router = APIRouter(include_in_schema=False)
SHOWN_RUNNING = 200
SHOWN_WAITING = 50
LOADS_SHOWN = 20
LOAD_READINGS = 60
"""Hardware readings of a session whose load is shown: those of 15 minutes."""
DAY_S = 86_400.0
Row = dict[str, Any]


@router.get("/fleet")
def fleet(request: Request, server: ServerDep, me: Viewer) -> Response:
    """The fleet page."""
    values = _fleet(server, me)
    if by_script(request):
        return piece("fleet_now.html", **values)
    return page(request, "fleet.html", me, **{k: v for k, v in values.items() if k not in ("me", "now")})


def _fleet(server: Server, me: Actor) -> Row:
    now = server.ctx.clock.now()
    member_id = me.jobs_seen
    running = server.dashboard_queries.running(member_id, SHOWN_RUNNING)
    return {
        "me": me,
        "now": now,
        "running": running,
        "loads": {s["id"]: server.queries.readings(s["id"], LOAD_READINGS) for s in running[:LOADS_SHOWN]},
        "lease_s": server.ctx.limits.lease_s,
        "machines": own_machines.shown(server, me),
        "waiting": _waiting(server, member_id),
        "day": server.dashboard_queries.day(member_id, first_id=first_id("lease", now - DAY_S), now=now),
    }


def _waiting(server: Server, member_id: str | None) -> list[Row]:
    rows = server.dashboard_queries.queue(member_id, SHOWN_WAITING)
    if not rows:
        return []
    places = server.machines.places()
    reasons = dispatch.why_each_waits(server.ctx, [row["id"] for row in rows], places)
    return [row | {"reason": reasons.get(row["id"])} for row in rows]


@router.get("/accounts")
def account_list(request: Request, server: ServerDep, me: Viewer) -> Response:
    """The accounts page: accounts and pools with their remaining quota."""
    return _accounts(request, server, me)


def _accounts(
    request: Request, server: Server, me: Actor, said: str = "", *, problem: str = "", status: int = 200
) -> Response:
    mine = accounts.list_accounts(server.ctx, me)
    with server.ctx.uow() as tx:
        _, busy = tx.leases.live_counts()
        names = {m.id: m.name for m in tx.members.all()}
    places = {place.account_id: place for place in capacity.list_capacity(server.ctx, mine)}
    now = server.ctx.clock.now()
    failures = server.dashboard_queries.failures([a.id for a in mine], first_id=first_id("lease", now - DAY_S))
    shown = [
        _shown(account, places[account.id], busy, names, me) | {"failures": failures.get(account.id)}
        for account in mine
    ]
    values: Row = {"accounts": shown, "providers": providers.list_providers(server.ctx), "said": said}
    values |= {"hub": _hub(server, me), "problem": problem, "connect": setup.connect_forms(server, me, mine)}
    values |= {"trackers": tracker_logins.states(server.ctx, me.member_id)}
    values |= {"store": setup.store_now(server), "store_forms": setup.store_forms(server, me)}
    if by_script(request):
        return piece("accounts_now.html", me=me, now=server.ctx.clock.now(), **values)
    return page(request, "accounts.html", me, status=status, **values)


def _hub(server: Server, me: Actor) -> Row:
    try:
        return {"problem": "", **vars(hub_tokens.stored(server.ctx, me.member_id))}
    except InvalidError as error:
        return {"problem": str(error), "stored": True, "account": ""}


def _shown(account: Account, place: Candidate, busy: dict[str, int], names: dict[str, str], me: Actor) -> Row:
    return {
        "account": account,
        "place": place,
        "busy": busy.get(account.id, 0),
        "owner": names.get(account.member_id or "", ""),
        "diagnosis": summary(account.image, account.provider),
        "mine": me.role is Role.ADMIN or account.member_id == me.member_id,
    }


@router.post("/accounts")
async def connect(request: Request, server: ServerDep, me: Viewer) -> Response:
    """Connect the viewer's own account, which is their consent. The credentials are tried first."""
    form = await setup.sent(request)
    try:
        words = await run_in_threadpool(setup.connect_account, server, me, form)
    except TrainhopError as error:
        return await run_in_threadpool(_accounts, request, server, me, problem=str(error), status=422)
    return await run_in_threadpool(_accounts, request, server, me, words)


@router.post("/accounts/{account_id}/check")
def check(request: Request, server: ServerDep, me: Viewer, account_id: str) -> Response:
    """Check this account with its provider."""
    account, words = accounts.check(server.ctx, me, account_id)
    return _accounts(request, server, me, "" if account.problem else f"{account.name}: {words}")


@router.post("/accounts/{account_id}/consent")
def consent(request: Request, server: ServerDep, me: Viewer, account_id: str) -> Response:
    """The owner allows jobs to run on the account."""
    accounts.consent(server.ctx, me, account_id)
    return _again(request, server, me)


def _again(request: Request, server: Server, me: Actor) -> Response:
    return _accounts(request, server, me) if by_script(request) else RedirectResponse("/accounts", 303)


@router.post("/accounts/{account_id}")
def change(
    request: Request, server: ServerDep, me: Viewer, account_id: str, paused: Annotated[bool, Form()]
) -> Response:
    """Pause or resume an account."""
    accounts.change_account(server.ctx, me, account_id, paused=paused)
    return _again(request, server, me)
