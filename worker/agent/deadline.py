"""When to stop and when to save: a session's wall-clock budget on a monotonic clock, and the Young/Daly cadence."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable

MAX_MARGIN_S = 30.0
FIRST_GUESS_S = 0.01
"""Stall assumed for a save before one has been timed."""

MAX_STALL = 0.003
"""Share of training time that saving may take."""

BACKGROUND_SHARE = 0.1
"""Share of the time in which a save may be written and sent in the background."""

MAX_GAP = 0.03
"""The interval that these two shares may ask for, as a share of the mean time between losses: half of it is trained again
with each machine that vanishes, so that saving cheaply costs one and a half per cent at most."""


class Budget:
    """Seconds this session may still use, counted from when the server said so; no wall clock of any machine is trusted."""

    def __init__(self, seconds_left: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds_left
        self.margin = min(MAX_MARGIN_S, max(1.0, 0.03 * seconds_left))
        self._worst_step = 0.0
        self._save = self._send = 0.0

    @property
    def left(self) -> float:
        """Seconds left; negative once it is over."""
        return self._end - self._clock()

    def stepped(self, seconds: float) -> None:
        """A step took this long, with everything between it and the one before."""
        self._worst_step = max(self._worst_step, seconds)

    def saved(self, write_s: float, send_s: float) -> None:
        """A save took this long to write and to bring to the store."""
        self._save, self._send = max(self._save, write_s), max(self._send, send_s)

    @property
    def needed(self) -> float:
        """Seconds that one more step and a last save may take."""
        return 1.5 * self._worst_step + 2.0 * (self._save + self._send) + self.margin

    @property
    def is_nearly_over(self) -> bool:
        """Whether another step might not leave time for the last save."""
        return self.left < self.needed


class Cadence:
    """When the next save is due: the Young/Daly interval for the measured stall, by time and never by step count."""

    def __init__(
        self,
        mtbf_s: float,
        max_interval_s: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        min_interval_s: float = 0.0,
    ) -> None:
        self._mtbf_s, self._clock = mtbf_s, clock
        self._max_interval_s, self._min_interval_s = max_interval_s, min_interval_s
        self._stalls: deque[float] = deque(maxlen=5)
        self._background_s = 0.0
        self._last = clock()

    @property
    def interval_s(self) -> float:
        """sqrt(2 c M), longer where saving would cost too much, never longer than the job's own limit.

        Unless grants are counted: then as long as it takes to be left with enough of them for the whole session.
        """
        stall = statistics.median(self._stalls) if self._stalls else FIRST_GUESS_S
        best = math.sqrt(2.0 * stall * self._mtbf_s)
        modest = max(stall / MAX_STALL, self._background_s / BACKGROUND_SHARE)
        wanted = min(self._max_interval_s, max(best, min(modest, MAX_GAP * self._mtbf_s)))
        return max(self._min_interval_s, wanted)

    @property
    def is_due(self) -> bool:
        """Whether the interval has passed since the last save began."""
        return self._clock() - self._last >= self.interval_s

    def begun(self) -> None:
        """A save begins now."""
        self._last = self._clock()

    def stalled(self, seconds: float) -> None:
        """Training waited this long for a save."""
        self._stalls.append(seconds)

    def wrote(self, seconds: float) -> None:
        """The background part of a save took this long."""
        self._background_s = seconds
