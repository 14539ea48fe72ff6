"""Upload grants: those in the assignment, and more from the server while it is reachable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from worker.agent import transfers
from worker.agent.uplink import UplinkError
from worker.shared.messages import Grant, GrantKind

SPARE_GRANTS = {GrantKind.CHECKPOINT: 2, GrantKind.ADAPTER: 0, GrantKind.ANSWERS: 0, GrantKind.EXPORT: 0}
"""Grants kept in reserve in case the server becomes unreachable.

The saver needs at most two checkpoint grants: for the unanswered checkpoint and the newest one.
"""

REFUSALS = 2
"""Refused addresses in a row after which the server is asked to take the files itself. One may just have expired."""


class Uploads:
    """Returns each grant once, and uploads through them.

    `more(kind, count)` requests grants from the server, and `through_server(kind)` one to upload to the server itself,
    which stores the file with its own rights. It is None if the server cannot be called. Both may raise any
    `UplinkError`.
    """

    def __init__(
        self,
        granted: Sequence[Grant],
        more: Callable[[GrantKind, int], list[Grant]],
        through_server: Callable[[GrantKind], Grant] | None = None,
    ) -> None:
        self._waiting = {kind: [grant for grant in granted if grant.kind is kind] for kind in GrantKind}
        self._more, self._through_server = more, through_server
        self._refusals = 0

    def take(self, kind: GrantKind) -> Grant:
        """An unused grant. Raises an `UplinkError` only if there is none.

        Once the store has refused the addresses of several grants, all further files go to the server.
        """
        if self._through_server is not None and self._refusals >= REFUSALS:
            return self._through_server(kind)
        waiting = self._waiting[kind]
        if len(waiting) <= SPARE_GRANTS[kind]:
            try:
                waiting += self._more(kind, 1 + SPARE_GRANTS[kind] - len(waiting))
            except UplinkError:
                if not waiting:
                    raise
        return waiting.pop(0)

    def send(self, grant: Grant, source: Path) -> None:
        """Upload a file. Raises the errors of `transfers.upload`."""
        try:
            transfers.upload(grant, source)
        except transfers.AddressRefused:
            self._refusals += 1
            raise
        if self._refusals < REFUSALS:
            self._refusals = 0
