"""When to stop and when to save: a session's time budget on a monotonic clock, and the Young/Daly interval."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable

MAX_MARGIN_S = 30.0
FIRST_GUESS_S = 0.01
"""Stall in seconds that is assumed for a save until one was measured."""

MAX_STALL = 0.003
"""Share of training time that saving may take."""

BACKGROUND_SHARE = 0.1
"""Share of the time in which a save may be written and sent in the background."""

MAX_GAP = 0.03
"""Upper limit of the interval that the two shares above may ask for, as a share of the mean time between losses.

A lost machine costs half an interval of repeated training on average, so this costs at most 1.5 %.
"""


class Budget:
    """Seconds that this session may still use, counted from the server's message.

    No machine's wall clock is trusted.
    """

    def __init__(self, seconds_left: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds_left
        self.margin = min(MAX_MARGIN_S, max(1.0, 0.03 * seconds_left))
        self._worst_step = 0.0
        self._save = self._send = 0.0

    @property
    def left(self) -> float:
        """Seconds left. Negative once the budget is used up."""
        return self._end - self._clock()

    def record_step(self, seconds: float) -> None:
        """Record the seconds of a step, including everything since the step before."""
        self._worst_step = max(self._worst_step, seconds)

    def record_save(self, write_s: float, send_s: float) -> None:
        """Record the seconds that a save took to write and to upload."""
        self._save, self._send = max(self._save, write_s), max(self._send, send_s)

    @property
    def needed(self) -> float:
        """Seconds that one more step and a final save may take."""
        return 1.5 * self._worst_step + 2.0 * (self._save + self._send) + self.margin

    @property
    def is_nearly_over(self) -> bool:
        """Whether another step might not leave time for the last save."""
        return self.left < self.needed


class Cadence:
    """Decides when the next save is due: after the Young/Daly interval for the measured stall.

    The interval is measured in seconds and not in steps.
    """

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
        """Seconds between two saves: sqrt(2 c M), with the measured stall c and the mean time between losses M.

        The interval is longer where saving would cost too much, and never longer than the job's own limit. If the
        number of grants is fixed, the interval is long enough for them to last the whole session.
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

    def record_save_start(self) -> None:
        """Record that a save starts now."""
        self._last = self._clock()

    def record_stall(self, seconds: float) -> None:
        """Record the seconds that training waited for a save."""
        self._stalls.append(seconds)

    def record_write(self, seconds: float) -> None:
        """Record the seconds that the background part of a save took."""
        self._background_s = seconds
