"""How far a session has come, and how fast it goes."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from worker.shared.messages import Fidelity

STEPS_TO_SKIP = 2
"""The first steps of a session warm things up and would spoil its seconds per step."""


class Progress:
    """`step` is the last one that is done, `made` the number of those that this session did."""

    def __init__(self, step: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.step, self.made = step, 0
        self._clock = clock
        self._times: deque[float] = deque(maxlen=50)
        self._last_step_at: float | None = None
        self._fidelity: Fidelity | None = None
        self._backend: str | None = None

    def restored(self, step: int, fidelity: Fidelity, backend: str) -> None:
        """The state is in place."""
        self.step, self._fidelity, self._backend = step, fidelity, backend

    def stepped(self, step: int, seconds: float) -> float:
        """A step took so long; returns the seconds since the one before it was done."""
        now = self._clock()
        since = seconds if self._last_step_at is None else now - self._last_step_at
        self._last_step_at, self.step = now, step
        self.made += 1
        if self.made > STEPS_TO_SKIP:
            self._times.append(seconds)
        return since

    def told(self) -> dict[str, Any]:
        """The fields of a report."""
        return {
            "step": self.step,
            "seconds_per_step": statistics.median(self._times) if self._times else None,
            "fidelity": self._fidelity,
            "backend": self._backend,
        }
