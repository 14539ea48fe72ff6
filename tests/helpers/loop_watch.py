"""An event loop that measures how long it was blocked: the processor time of its own thread in one turn.

Processor time, because on a busy machine the wall clock says more of the neighbours. The garbage collector's time is
taken off: it depends on everything that tests before have left in this process.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from typing import Any

MOST_S = 0.25
"""What a test allows. The aim is 0.05 s on a quiet machine."""


class LoopWatch:
    """Makes loops and keeps their longest turn in seconds."""

    def __init__(self) -> None:
        self.longest = 0.0

    def new_loop(self) -> asyncio.AbstractEventLoop:
        """A loop under this watch."""
        return _WatchedLoop(self)

    def check(self) -> None:
        """Fail if a turn took too long."""
        assert self.longest <= MOST_S, f"the event loop was blocked for {self.longest:.2f} s of processor time"


class _Collections:
    """The processor time that the garbage collector has taken in each thread."""

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}
        self._begun: dict[int, float] = {}
        gc.callbacks.append(self._note)

    def _note(self, phase: str, _: dict[str, int]) -> None:
        thread, now = threading.get_ident(), time.thread_time()
        if phase == "start":
            self._begun[thread] = now
        else:
            self.seconds[thread] = self.seconds.get(thread, 0.0) + now - self._begun.get(thread, now)


_collections = _Collections()


class _WatchedLoop(asyncio.SelectorEventLoop):
    def __init__(self, watch: LoopWatch) -> None:
        super().__init__()
        self._watch = watch

    def _run_once(self) -> Any:
        begun = self._worked()
        try:
            super()._run_once()  # pyright: ignore[reportAttributeAccessIssue]  one turn of every loop of asyncio
        finally:
            self._watch.longest = max(self._watch.longest, self._worked() - begun)

    @staticmethod
    def _worked() -> float:
        return time.thread_time() - _collections.seconds.get(threading.get_ident(), 0.0)
