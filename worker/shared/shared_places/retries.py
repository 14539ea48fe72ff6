"""Repeats a call that a shared place was too busy for, or did not answer."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from worker.shared.shared_places.errors import BusyError, UnknownError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Retries:
    """Pauses between attempts double from `first_s` to `longest_s`. The last attempt begins within `within_s`."""

    first_s: float = 1.0
    longest_s: float = 60.0
    within_s: float = 600.0


def persist(
    act: Callable[[], T],
    retries: Retries,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """The result of a call that may be repeated. Raises its last `BusyError` or `UnknownError`, or any other error."""
    began, pause_s = clock(), retries.first_s
    while True:
        try:
            return act()
        except (BusyError, UnknownError) as error:
            wait_s = max(pause_s * random.uniform(0.5, 1.0), getattr(error, "after_s", 0.0))  # noqa: S311
            if clock() - began + wait_s > retries.within_s:
                raise
        sleep(wait_s)
        pause_s = min(2 * pause_s, retries.longest_s)
