"""HTTP endpoints for machines of one's own: codes for people, and the calls of machines that have joined."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request

from orchestrator.domain.accounts import Account
from orchestrator.entrypoints.api import machine_responses, responses
from orchestrator.entrypoints.http.auth import machine_holder
from orchestrator.entrypoints.http.dependencies import PROBLEMS, CurrentUser, Server, ServerDep
from orchestrator.entrypoints.http.routes import PREFIX, ApiRoute
from orchestrator.services import accounts, joined_machines
from worker.shared.joined_messages import WAIT_S, Joined, JoinRequest, MachineReport, Orders
from worker.shared.loopback import is_loopback

router = APIRouter(prefix=PREFIX, route_class=ApiRoute, responses=PROBLEMS)
Machine = Annotated[Account, Depends(machine_holder)]
LOOK_EVERY_S = 0.1
Shared = Annotated[bool, Query(description="For the jobs of all members. Only an admin can do this.")]


@router.post(
    "/machine-codes",
    status_code=201,
    tags=["accounts"],
    operation_id="make_machine_code",
    summary="Create a code with which a machine joins",
)
def make_code(
    server: ServerDep, request: Request, me: CurrentUser, shared: Shared = False
) -> machine_responses.MachineCode:
    """The code works once. `command` is what to type on the machine."""
    return new_code(server, request, me, shared=shared)


def new_code(server: Server, request: Request, me: CurrentUser, *, shared: bool) -> machine_responses.MachineCode:
    """A code with the command for it, for the address that the caller has used."""
    address = str(request.base_url).rstrip("/") if server.ctx.public_url is None else server.ctx.public_url
    code, made = joined_machines.make_code(server.ctx, me, shared=shared)
    is_near = is_loopback(address)
    note = (
        f"Other computers cannot reach {address}. Give the server an address with TRAINHOP_HOST or "
        "TRAINHOP_PUBLIC_URL, and use that address in the command"
        if is_near
        else ""
    )
    return machine_responses.MachineCode.model_validate(
        {"code": code, "command": f"trainhop join {address} {code}", "expires_at": made.expires_at, "note": note}
    )


@router.get(
    "/machines", tags=["accounts"], operation_id="list_machines", summary="List joined machines with their readings"
)
def list_machines(server: ServerDep, me: CurrentUser) -> responses.Items[machine_responses.Machine]:
    """Your own machines and shared ones, or all machines for an admin."""
    found = [each for each in accounts.list_accounts(server.ctx, me) if each.token_hash is not None]
    items = [machine_responses.shown(each, joined_machines.state_of(server.ctx, each)) for each in found]
    return responses.Items[machine_responses.Machine].model_validate({"items": items})


@router.post(
    "/accounts/{account_id}:drain",
    tags=["accounts"],
    operation_id="drain_account",
    summary="Pause an account, and have its sessions save and end",
)
def drain(
    server: ServerDep, me: CurrentUser, account_id: Annotated[str, Path(max_length=100)]
) -> machine_responses.Drained:
    """Before a reboot. Their jobs continue on other machines, or here after `paused` is set back to false."""
    account, sessions = joined_machines.drain(server.ctx, me, account_id)
    return machine_responses.Drained(account=responses.Account.model_validate(account), sessions=sessions)


@router.post("/machines", tags=["worker"], operation_id="join_machine", summary="Join with a code")
def join(server: ServerDep, request: Request, asked: JoinRequest) -> Joined:
    """For the agent of a machine. A code works once. The answer has the machine's own token."""
    with server.rate_limit.counted(request.client.host if request.client else ""):
        return joined_machines.join(server.ctx, asked)


@router.post(
    "/machines/{account}/report",
    tags=["worker"],
    operation_id="report_machine",
    summary="Report a machine's sessions and get its orders",
)
def report(server: ServerDep, account: Machine, message: MachineReport) -> Orders:
    """An order is repeated until the report shows that it was carried out."""
    return joined_machines.report(server.ctx, account, message)


@router.get(
    "/machines/{account}/orders",
    tags=["worker"],
    operation_id="await_orders",
    summary="Wait for new orders",
)
async def wait(
    server: ServerDep, account: Machine, seconds: Annotated[float, Query(ge=0, le=WAIT_S)] = WAIT_S
) -> machine_responses.HasOrders:
    """Answers at once if there are orders since the last report, otherwise after this time."""
    until = time.monotonic() + seconds
    while not joined_machines.has_orders(server.ctx, account):
        if time.monotonic() >= until or server.event_notifier.is_closed:
            return machine_responses.HasOrders(new=False)
        await asyncio.sleep(LOOK_EVERY_S)
    return machine_responses.HasOrders(new=True)


@router.post(
    "/machines/{account}/leave", status_code=204, tags=["worker"], operation_id="leave_machine", summary="Leave"
)
def leave(server: ServerDep, account: Machine) -> None:
    """Removes the machine's account. Refused while sessions run there."""
    joined_machines.leave(server.ctx, account)
