"""The computer's clock without its jumps: it counts by monotonic time, and follows a jump only when asked to.

A clock that was set by hand, by a time server or by a virtual machine jumps by any amount, sometimes for seconds.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

from worker.shared.files import write_atomically

JUMP_S = 5.0
"""A smaller difference is followed at once. Sessions have time limits of a minute and more."""
NOTE_EVERY_S = 60.0
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def elapsed() -> float:
    """Seconds that only grow, those in which the computer slept included."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def boot_id() -> str:
    """Which start of this computer `elapsed` counts from. Empty if it is unknown."""
    with contextlib.suppress(OSError):
        return _BOOT.read_text().strip()
    return ""


class SteadyClock:
    """Implements `ports.system.Clock`.

    `file` remembers the time for the next start, which can then notice a jump that happened in between: any jump if the
    computer was not restarted, and otherwise one into the past.
    """

    def __init__(
        self,
        file: Path | None = None,
        *,
        wall: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = elapsed,
        boot: Callable[[], str] = boot_id,
    ) -> None:
        self._file, self._wall, self._elapsed, self._boot = file, wall, elapsed, boot()
        self._offset = self._first_offset()
        self._noted_at = self._jumped_at = -math.inf

    def _first_offset(self) -> float:
        now = self._elapsed()
        usual = self._wall() - now
        try:
            said = json.loads(self._file.read_text()) if self._file is not None else {}
            boot, at, counted = str(said["boot"]), float(said["at"]), float(said["elapsed"])
        except (OSError, ValueError, KeyError, TypeError):
            return usual
        if not (math.isfinite(at) and math.isfinite(counted)):
            return usual
        if boot and boot == self._boot and counted <= now:
            return at - counted
        return max(usual, at - now)

    def now(self) -> float:
        return self._offset + self._elapsed()

    @property
    def calm_s(self) -> float:
        """Seconds since this clock followed a jump. Infinite if it never did."""
        return self._elapsed() - self._jumped_at

    def jump(self) -> float:
        """Seconds by which the computer's clock is ahead of this one. 0 unless it has jumped."""
        ahead = self._wall() - self.now()
        if abs(ahead) >= JUMP_S:
            return ahead
        self._offset += ahead
        self._note()
        return 0.0

    def follow(self, seconds: float) -> None:
        """Move on by the seconds of a jump, or back if they are negative."""
        self._offset += seconds
        self._jumped_at, self._noted_at = self._elapsed(), -math.inf

    def _note(self) -> None:
        now = self._elapsed()
        if self._file is None or now - self._noted_at < NOTE_EVERY_S:
            return
        self._noted_at = now
        with contextlib.suppress(OSError):  # a full disk: the next start cannot notice a jump
            write_atomically(
                self._file, json.dumps({"boot": self._boot, "at": self._offset + now, "elapsed": now}), mode=0o600
            )
