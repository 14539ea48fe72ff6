"""The capacity of all accounts for requests: asked at the providers at most every few seconds."""

from __future__ import annotations

import time

from orchestrator.domain.scheduling import Candidate
from orchestrator.services import capacity
from orchestrator.services.context import Context

KNOWN_FOR_S = 10.0


class Machines:
    """The capacity of all accounts, cached for a few seconds for all callers."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._until, self._places = 0.0, list[Candidate]()

    def places(self) -> list[Candidate]:
        """The capacity of all accounts, without subtracting live sessions."""
        if time.monotonic() >= self._until:
            with self._ctx.uow() as tx:
                accounts = tx.accounts.all()
            self._places = capacity.list_capacity(self._ctx, accounts)
            self._until = time.monotonic() + KNOWN_FOR_S
        return self._places
