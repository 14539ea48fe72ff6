"""Records where a session's wall-clock time went. The phases add up to all of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from worker.shared.messages import Phase


class Ledger:
    """Counts seconds per phase. Exactly one phase is active at any time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, began: float | None = None) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._phase, self._since = Phase.BOOT, clock() if began is None else began
        self._spent: dict[Phase, float] = {}

    @property
    def phase(self) -> Phase:
        """The active phase."""
        return self._phase

    def enter(self, phase: Phase) -> float:
        """Begin a phase. Returns the seconds of the phase before."""
        with self._lock:
            now = self._clock()
            took = now - self._since
            self._spent[self._phase] = self._spent.get(self._phase, 0.0) + took
            self._phase, self._since = phase, now
            return took

    def seconds(self) -> dict[Phase, float]:
        """Seconds per phase until now."""
        self.enter(self._phase)
        with self._lock:
            return dict(self._spent)
