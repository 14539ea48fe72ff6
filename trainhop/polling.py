"""Wait for the end of a job, through restarts of the server."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainhop.errors import Error

PERIOD_S = 1.0
PATIENCE_S = 600.0
"""Give up when the server does not answer for longer than this."""

FINAL = frozenset({"succeeded", "failed", "cancelled"})
STATE_WORDS = {"leased": "starting"}
"""Words for states that the API names otherwise."""


def state_word(state: str) -> str:
    """The word for a job's state: queued, starting, running, paused, succeeded, failed or cancelled."""
    return STATE_WORDS.get(state, state)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The clocks of `until_final`. Times are seconds. A `timeout_s` of None waits as long as the job takes."""

    timeout_s: float | None = None
    period_s: float = PERIOD_S
    patience_s: float = PATIENCE_S
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep


def until_final(
    look: Callable[[], dict[str, Any]],
    show: Callable[[dict[str, Any]], object],
    note: Callable[[str], object] = lambda _words: None,
    timing: Timing | None = None,
) -> dict[str, Any]:
    """Fetch the job with `look` and `show` it until it has ended. Returns the ended job.

    `note` is called when the server goes away and comes back. Raises `Error` if it stays away, and after the timeout.
    """
    timing = timing or Timing()
    began, silent_since = timing.clock(), None
    while True:
        try:
            job = look()
        except Error as error:
            if error.reason != "unreachable":
                raise
            if silent_since is None:
                note("the server does not answer, retrying; the job keeps running")
                silent_since = timing.clock()
            if timing.clock() - silent_since > timing.patience_s:
                raise
        else:
            if silent_since is not None:
                note("connected to the server again")
            silent_since = None
            show(job)
            if job["state"] in FINAL:
                return job
        _pause(timing, began)


def _pause(timing: Timing, began: float) -> None:
    if timing.timeout_s is not None and timing.clock() - began >= timing.timeout_s:
        raise Error(f"the job has not ended within {timing.timeout_s:g} s; it goes on, wait again", reason="timeout")
    timing.sleep(timing.period_s)
