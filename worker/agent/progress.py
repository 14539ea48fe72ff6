"""The step that a session has reached, and its seconds per step."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from worker.shared.manifest import Fidelity

STEPS_TO_SKIP = 2
"""The first steps of a session include warm-up and are left out of its seconds per step."""


class Progress:
    """`step` is the last finished step, `steps_done` is the number of steps that this session has done."""

    def __init__(self, step: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.step, self.steps_done = step, 0
        self._clock = clock
        self._times: deque[float] = deque(maxlen=50)
        self._last_step_at: float | None = None
        self._fidelity: Fidelity | None = None
        self._backend: str | None = None
        self.problem = ""

    def record_restore(self, step: int, fidelity: Fidelity, backend: str) -> None:
        """Record that the training state is loaded."""
        self.step, self._fidelity, self._backend = step, fidelity, backend

    def record_fidelity(self, fidelity: Fidelity) -> None:
        """Record that the session is less exact than it was at its restore."""
        self._fidelity = fidelity

    def record_problem(self, why: str) -> bool:
        """Record why the newest file is not in the store, or "" if it is. Returns whether that is new."""
        before, self.problem = self.problem, why
        return why != before

    def record_step(self, step: int, seconds: float) -> float:
        """Record the seconds of a step. Returns the seconds since the end of the step before."""
        now = self._clock()
        since = seconds if self._last_step_at is None else now - self._last_step_at
        self._last_step_at, self.step = now, step
        self.steps_done += 1
        if self.steps_done > STEPS_TO_SKIP:
            self._times.append(seconds)
        return since

    def report_fields(self) -> dict[str, Any]:
        """The progress fields of a report."""
        return {
            "step": self.step,
            "seconds_per_step": statistics.median(self._times) if self._times else None,
            "fidelity": self._fidelity,
            "backend": self._backend,
            "problem": self.problem,
        }
