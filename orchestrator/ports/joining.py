"""The interface of providers whose machines join by themselves and call the server for orders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from orchestrator.domain.accounts import Account
from worker.shared.joined_messages import MachineOffer, MachineReadings, MachineReport, Orders


@dataclass(frozen=True, kw_only=True)
class JoinedMachine:
    """The last report of a machine. `seen_at` is when it came (0: before this server was started).

    `ahead_s` is how far its clock was ahead of the server's.
    """

    seen_at: float
    offer: MachineOffer
    readings: MachineReadings
    ahead_s: float = 0.0


@runtime_checkable
class SupportsJoining(Protocol):
    """What a driver adds if its machines join by themselves and call the server for orders. Each has an account."""

    def exchange(self, account: Account, report: MachineReport) -> Orders:
        """Note what a machine reports, and return what it has to do. A repeated report has no effect."""
        ...

    def has_orders(self, account_id: str) -> bool:
        """Whether a machine has new orders since its last report. Cheap, without a call or a file."""
        ...

    def machine(self, account_id: str) -> JoinedMachine | None:
        """The last report of a machine. None if it has never reported."""
        ...

    def forget_machine(self, account_id: str) -> None:
        """The machine has left."""
        ...
