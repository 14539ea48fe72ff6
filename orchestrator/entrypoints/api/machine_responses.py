"""API responses for machines that have joined."""

from __future__ import annotations

from typing import Any

from orchestrator.domain.accounts import Account as DomainAccount
from orchestrator.entrypoints.api.responses import Account, ResponseModel, Time
from orchestrator.services.joined_machines import MachineState
from worker.shared.joined_messages import MachineReadings as Measured


class MachineCode(ResponseModel):
    """A code with which one machine joins until `expires_at`. `note` tells where its command does not work."""

    code: str
    command: str
    expires_at: Time
    note: str


class GpuLoad(ResponseModel):
    """One GPU: its memory in bytes, and how busy it is in percent, null if that is not known."""

    name: str
    total_bytes: int
    used_bytes: int
    percent: float | None


class MachineLoad(ResponseModel):
    """What a machine measured at its last report. `load` is that of one minute, sizes are in bytes."""

    gpus: list[GpuLoad]
    processors: int
    load: float | None
    ram_bytes: int
    ram_free_bytes: int
    disk_free_bytes: int


class Machine(ResponseModel):
    """A machine that has joined. `quiet_s` are the seconds since its last report, null if there was none yet.

    Each of its `slots` runs one session with `memory_bytes` of memory, that of a GPU if it has one. `closed_reason` is
    why it starts nothing now.
    """

    account_id: str
    name: str
    hostname: str
    slots: int
    memory_bytes: int
    gpu: bool
    closed_reason: str
    quiet_s: float | None
    warning: str
    readings: MachineLoad


class Drained(ResponseModel):
    """The paused account, and how many of its sessions will save and end."""

    account: Account
    sessions: int


class HasOrders(ResponseModel):
    """Whether the machine has new orders since its last report."""

    new: bool


def shown(account: DomainAccount, state: MachineState | None) -> dict[str, Any]:
    """A machine as `Machine` has it."""
    of_account = {"account_id": account.id, "name": account.name}
    if state is None:
        empty = {"hostname": "", "slots": 0, "memory_bytes": 0, "gpu": False, "closed_reason": "", "warning": ""}
        return of_account | empty | {"quiet_s": None, "readings": Measured()}
    offer = state.machine.offer
    return of_account | {
        **offer.model_dump(include={"hostname", "slots", "memory_bytes", "gpu", "closed_reason"}),
        "quiet_s": state.quiet_s,
        "warning": state.warning,
        "readings": state.machine.readings,
    }
