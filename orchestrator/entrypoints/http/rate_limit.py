"""Rate limit for wrong codes per client address."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.exceptions import HTTPException

from orchestrator.domain.errors import NotFoundError
from worker.shared.counted_words import many

WRONG_PER_MINUTE = 10
MAX_ADDRESSES = 4096
"""Maximum number of client addresses in memory. Entries expire after a minute."""


class RateLimit:
    """Counts wrong codes by client address. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._wrong: dict[str, deque[float]] = {}

    @contextmanager
    def counted(self, address: str) -> Iterator[None]:
        """Guard one attempt. Raises 429 after too many wrong codes. A `NotFoundError` inside counts as a wrong code."""
        with self._lock:
            recent = self._recent(address)
        if len(recent) >= WRONG_PER_MINUTE:
            wait = max(1, round(recent[0] + 60.0 - self._clock()))
            raise HTTPException(
                429,
                f"Too many wrong codes from this address. Try again in {many(wait, 'second')}.",
                {"Retry-After": str(wait)},
            )
        try:
            yield
        except NotFoundError:
            with self._lock:
                if len(self._wrong) >= MAX_ADDRESSES:
                    self._wrong.clear()
                self._wrong.setdefault(address, deque(maxlen=WRONG_PER_MINUTE)).append(self._clock())
            raise

    def _recent(self, address: str) -> deque[float]:
        recent = self._wrong.get(address, deque[float]())
        while recent and recent[0] <= self._clock() - 60.0:
            recent.popleft()
        if not recent:
            self._wrong.pop(address, None)
        return recent
