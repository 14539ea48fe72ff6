"""When the computer's clock jumps: the times that the server compares with the present jump along.

No session expires early and none lives for ever, whatever the clock did.
"""

from __future__ import annotations

from typing import Protocol

import structlog

from orchestrator.services.context import Context

log = structlog.get_logger()


class FollowingClock(Protocol):
    """A clock that follows the computer's clock only when asked to."""

    def jump(self) -> float:
        """Seconds by which the computer's clock is ahead. 0 unless it has jumped."""
        ...

    def follow(self, seconds: float) -> None:
        """Move on by these seconds."""
        ...


def follow(ctx: Context, clock: FollowingClock) -> float:
    """Follow a jump of the computer's clock. Returns its seconds, 0 if there was none.

    Call it between two passes over the sessions, because a pass compares times that it has read with the present.
    """
    seconds = clock.jump()
    if not seconds:
        return 0.0
    moved = False
    try:
        with ctx.uow() as tx:
            tx.times.shift(seconds)
            # In the transaction, so that no other one sees moved times with the old clock.
            clock.follow(seconds)
            moved = True
    except BaseException:
        if moved:
            clock.follow(-seconds)
        raise
    log.warning("the computer's clock has jumped; times of sessions were moved along", seconds=round(seconds, 1))
    return seconds
