"""Notebooks: Colab, an interactive Kaggle session or plain Jupyter, each opened and run by its owner."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.domain.model import Account
from orchestrator.ports import (
    Capabilities,
    Handle,
    LaunchRejected,
    LaunchRequest,
    Leftovers,
    Liveness,
    Observation,
    Room,
)

SESSION_S = 11 * 3600.0
"""A free runtime lasts 12 hours at most; nothing is promised."""

BY_HAND = "a notebook is opened by its owner: trainhop notebook JOB"


class ColabProvider:
    """Implements `ports.Provider` for machines that people start. The scheduler never does: free runtimes forbid it.

    Only a session's own reports tell that it lives, and it ends when it is asked to, or when its lease runs out.
    """

    capabilities = Capabilities(provider="colab", shares_disk=False, personal=True)

    def room(self, account: Account) -> Room:
        return Room(
            slots=0, session_s=float(account.config.get("session_s", SESSION_S)), start_up_s=120.0, shut=BY_HAND
        )

    def launch(self, request: LaunchRequest) -> str:
        raise LaunchRejected(BY_HAND)

    def observe(self, handles: Sequence[Handle]) -> list[Observation]:
        return [Observation(lease_id=handle.lease_id, liveness=Liveness.UNSEEN) for handle in handles]

    def stop(self, handle: Handle) -> None:
        """Nothing of ours reaches a notebook: its worker stops at its next report, or its lease ends."""

    def collect(self, handle: Handle) -> Leftovers:
        return Leftovers()

    def forget(self, handle: Handle) -> None:
        """A notebook leaves nothing behind."""

    def log(self, handle: Handle, offset: int, limit: int) -> bytes | None:
        return None
