"""Wait for the end of a job, through restarts of the server."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

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


T = TypeVar("T")


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
    job: dict[str, Any] = {}
    for seen in rounds(look, lambda job: job["state"] in FINAL, note, timing):
        if seen is None:
            timing.sleep(timing.period_s)
        else:
            job = seen
            show(job)
    return job


def rounds(
    look: Callable[[], T],
    is_last: Callable[[T], bool],
    note: Callable[[str], object] = lambda _words: None,
    timing: Timing | None = None,
) -> Generator[T | None]:
    """What each `look` has found, and None where the caller is to sleep for `period_s`. It does not sleep itself.

    It ends after what `is_last`. A server that is away is asked again. Raises `Error` if it stays away, and after the
    timeout.
    """
    timing = timing or Timing()
    began, silent_since = timing.clock(), None
    while True:
        try:
            found = look()
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
            yield found
            if is_last(found):
                return
        if timing.timeout_s is not None and timing.clock() - began >= timing.timeout_s:
            message = f"the job has not ended within {timing.timeout_s:g} s; it goes on, wait again"
            raise Error(message, reason="timeout")
        yield None
