"""Slow calls in parallel: a caller waits for several of them no longer than for one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Generic, TypeVar

MAX_LAST = 1_000
"""Maximum results that are kept for `last`."""
T = TypeVar("T")


@dataclass
class _Call(Generic[T]):
    began: float
    ended: float = float("inf")
    answer: Future[T] = field(default_factory=Future[T])


class SingleFlight(Generic[T]):
    """Calls by key, each in a thread of its own that ends with the process. Safe to share between threads.

    A call that is late continues, and is not made again meanwhile. The next caller gets its result. A late result
    expires if no caller fetches it within `believed_s` seconds.
    """

    def __init__(self, believed_s: float = 10.0) -> None:
        self._believed_s = believed_s
        self._calls: dict[str, _Call[T]] = {}
        self._last: dict[str, T] = {}
        self._lock = threading.Lock()

    def gather(
        self, calls: Mapping[str, Callable[[], T]], patience_s: float, on_late: Callable[[], None]
    ) -> dict[str, T]:
        """The results by key, without calls that have taken longer than `patience_s` seconds.

        `on_late` is called for each late one when its result arrives. Raises what a call has raised.
        """
        under_way = {key: self._begin(key, call, patience_s, on_late) for key, call in calls.items()}
        answers: dict[str, T] = {}
        for key, call in under_way.items():
            wait([call.answer], max(0.0, call.began + patience_s - time.monotonic()))
            if call.answer.done():
                self._forget(key, call)
                answers[key] = self._kept(key, call.answer.result())
        return answers

    def _begin(self, key: str, work: Callable[[], T], patience_s: float, on_late: Callable[[], None]) -> _Call[T]:
        with self._lock:
            known = self._calls.get(key)
            if known is not None and time.monotonic() < known.ended + self._believed_s:
                return known
            call = _Call[T](began=time.monotonic())
            arguments = (call, work, patience_s, on_late)
            threading.Thread(target=_run, args=arguments, name=f"aside-{key[:40]}", daemon=True).start()
            self._calls[key] = call
            return call

    def _kept(self, key: str, answer: T) -> T:
        with self._lock:
            self._last.pop(key, None)
            self._last[key] = answer
            while len(self._last) > MAX_LAST:
                del self._last[next(iter(self._last))]
        return answer

    def last(self, key: str) -> T | None:
        """The newest result of an earlier call. None if there was none."""
        with self._lock:
            return self._last.get(key)

    def _forget(self, key: str, call: _Call[T]) -> None:
        with self._lock:
            if self._calls.get(key) is call:
                del self._calls[key]


def _run(call: _Call[T], work: Callable[[], T], patience_s: float, on_late: Callable[[], None]) -> None:
    try:
        answer = work()
    except BaseException as error:  # noqa: BLE001  raised where the answer is read
        call.ended = time.monotonic()
        call.answer.set_exception(error)
    else:
        call.ended = time.monotonic()
        call.answer.set_result(answer)
    if call.ended > call.began + patience_s:
        on_late()
