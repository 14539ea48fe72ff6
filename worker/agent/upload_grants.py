"""Permissions to upload: those that came along, and more of them while the server can be asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from worker.agent.uplink import UplinkError
from worker.shared.messages import Grant, GrantKind

SPARE_GRANTS = {GrantKind.CHECKPOINT: 2, GrantKind.ADAPTER: 0}
"""Kept in hand for a server that goes away: the saver needs no more than two, one unanswered and the newest."""


class Uploads:
    """Hands out each grant once; `more(kind, count)` asks the server and may raise any `UplinkError`."""

    def __init__(self, granted: Sequence[Grant], more: Callable[[GrantKind, int], list[Grant]]) -> None:
        self._waiting = {kind: [grant for grant in granted if grant.kind is kind] for kind in GrantKind}
        self._more = more

    def take(self, kind: GrantKind) -> Grant:
        """A grant that nobody has used; raises an `UplinkError` only when there is none."""
        waiting = self._waiting[kind]
        if len(waiting) <= SPARE_GRANTS[kind]:
            try:
                waiting += self._more(kind, 1 + SPARE_GRANTS[kind] - len(waiting))
            except UplinkError:
                if not waiting:
                    raise
        return waiting.pop(0)
