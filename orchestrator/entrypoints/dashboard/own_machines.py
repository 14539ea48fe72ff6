"""Machines of one's own: a code for a new one, a drain, and the readings that the fleet page shows."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from orchestrator.domain.accounts import Actor
from orchestrator.entrypoints.api.joined_machines import new_code
from orchestrator.entrypoints.dashboard.render import Viewer, page
from orchestrator.entrypoints.http.dependencies import Server, ServerDep
from orchestrator.services import accounts, joined_machines

router = APIRouter(include_in_schema=False)
SHOWN = 100


@router.post("/machine-codes")
def make_code(request: Request, server: ServerDep, me: Viewer, shared: Annotated[bool, Form()] = False) -> Response:
    """Make a code, and show its command once."""
    return page(request, "machine_code.html", me, made=new_code(server, request, me, shared=shared))


@router.post("/accounts/{account_id}/drain")
def drain(server: ServerDep, me: Viewer, account_id: str) -> Response:
    """Pause the machine, and have its sessions save and end."""
    joined_machines.drain(server.ctx, me, account_id)
    return RedirectResponse("/accounts", 303)


def shown(server: Server, me: Actor) -> list[dict[str, Any]]:
    """The machines that the viewer can use, with their last readings and their sessions."""
    found = [account for account in accounts.list_accounts(server.ctx, me) if account.token_hash is not None][:SHOWN]
    if not found:
        return []
    with server.ctx.uow() as tx:
        _, busy = tx.leases.live_counts()
        names = {member.id: member.name for member in tx.members.all()}
    return [
        {
            "account": account,
            "owner": names.get(account.member_id or "", ""),
            "busy": busy.get(account.id, 0),
            "state": joined_machines.state_of(server.ctx, account),
        }
        for account in found
    ]
