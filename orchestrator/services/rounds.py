"""When each loop of the server last ended a round, and which loop is late."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

LATE_S = 120.0
"""How much longer than its period a loop may take. A provider or a store may be slow."""


@dataclass
class _Loop:
    within_s: float
    ended_at: float


class Rounds:
    """Counts seconds on a monotonic clock. Safe to share between threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._loops: dict[str, _Loop] = {}

    def expect(self, loop: str, within_s: float) -> None:
        """The loop begins now. It is late if no round ends within `within_s` seconds."""
        with self._lock:
            self._loops[loop] = _Loop(within_s, self._clock())

    def ended(self, loop: str) -> None:
        """A round of the loop has ended, even if it failed."""
        with self._lock:
            if loop in self._loops:
                self._loops[loop].ended_at = self._clock()

    def forget(self, loop: str) -> None:
        """The loop has ended as intended."""
        with self._lock:
            self._loops.pop(loop, None)

    def ages(self) -> dict[str, float]:
        """Seconds since the last round of each loop ended."""
        with self._lock:
            now = self._clock()
            return {name: now - loop.ended_at for name, loop in self._loops.items()}

    def late(self) -> dict[str, float]:
        """Seconds since the last round, of the loops that are late."""
        with self._lock:
            now = self._clock()
            since = {name: (now - loop.ended_at, loop.within_s) for name, loop in self._loops.items()}
        return {name: age for name, (age, within_s) in since.items() if age > within_s}
