"""What a driver adds that can try an account out on a machine of its own, before any job runs there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from orchestrator.domain.model import Account
from worker.doctor.outcome import PROBES, Outcome


@dataclass(frozen=True, kw_only=True)
class CheckOrder:
    """One check. `token` signs what its machines say and opens nothing; `uploads` are addresses of two upload sessions, or none."""

    id: str
    token: str
    gpu: bool
    probes: frozenset[str] = frozenset(PROBES)
    uploads: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What a check found: the image, what came with it (package and version), and how each probe ended."""

    image: str
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    outcomes: tuple[Outcome, ...] = ()


@runtime_checkable
class SupportsDiagnosis(Protocol):
    """Both calls raise `ProviderError` like every other call of a driver."""

    def diagnose(self, account: Account, order: CheckOrder, tell: Callable[[Outcome], None]) -> Examined:
        """Run the probes of `order`, which takes minutes; `tell` hears of each that has ended, from any thread."""
        ...

    def clear_check(self, account: Account, check_id: str) -> None:
        """Delete what that check left at the provider; nothing happens where there is nothing."""
        ...
