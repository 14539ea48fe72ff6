"""Waiting for what other threads and processes do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 60.0
SHARE, LONGEST_S = 8.0, 0.5
"""A look is followed by a pause of this many times its own duration, at most so long."""


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """The first true answer; never judged by how long it takes."""
    if found := first_true(condition, PATIENCE_S):
        return found
    raise AssertionError(f"waited {PATIENCE_S:.0f} s for {what}")


def first_true(condition: Callable[[], Any], patience_s: float, every_s: float = 0.02) -> Any:
    """The first true answer, or the last one after `patience_s`.

    A condition that asks a server or starts a process is asked less often than `every_s`: what is waited for needs the
    processor more.
    """
    until = time.monotonic() + patience_s
    while True:
        began = time.monotonic()
        if (found := condition()) or began > until:
            return found
        time.sleep(max(every_s, min(LONGEST_S, SHARE * (time.monotonic() - began))))
