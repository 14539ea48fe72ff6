"""Slow calls side by side: whoever waits for several of them waits for none longer than for the first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
BELIEVED_S = 10.0
"""A late answer that nobody has asked for since counts no longer than this."""


@dataclass
class _Call(Generic[T]):
    began: float
    ended: float = float("inf")
    answer: Future[T] = field(default_factory=Future[T])


class SingleFlight(Generic[T]):
    """Calls by key, each in a thread of its own that ends with the process. Safe to share between threads.

    A call that is not over in time goes on, and is not made a second time meanwhile; who asks next is given what it said.
    """

    def __init__(self) -> None:
        self._calls: dict[str, _Call[T]] = {}
        self._lock = threading.Lock()

    def gather(
        self, calls: Mapping[str, Callable[[], T]], patience_s: float, on_late: Callable[[], None]
    ) -> dict[str, T]:
        """The answers by key, without those still missing `patience_s` seconds after their calls were begun.

        `on_late` hears of each of these when it has come. Raises what a call has raised.
        """
        asked = {key: self._begin(key, call, patience_s, on_late) for key, call in calls.items()}
        answers: dict[str, T] = {}
        for key, call in asked.items():
            wait([call.answer], max(0.0, call.began + patience_s - time.monotonic()))
            if call.answer.done():
                self._forget(key, call)
                answers[key] = call.answer.result()
        return answers

    def _begin(self, key: str, work: Callable[[], T], patience_s: float, on_late: Callable[[], None]) -> _Call[T]:
        with self._lock:
            known = self._calls.get(key)
            if known is not None and time.monotonic() < known.ended + BELIEVED_S:
                return known
            call = _Call[T](began=time.monotonic())
            arguments = (call, work, patience_s, on_late)
            threading.Thread(target=_run, args=arguments, name=f"aside-{key[:40]}", daemon=True).start()
            self._calls[key] = call
            return call

    def _forget(self, key: str, call: _Call[T]) -> None:
        with self._lock:
            if self._calls.get(key) is call:
                del self._calls[key]


def _run(call: _Call[T], work: Callable[[], T], patience_s: float, on_late: Callable[[], None]) -> None:
    try:
        answer = work()
    except BaseException as error:  # noqa: BLE001  raised where the answer is asked for
        call.ended = time.monotonic()
        call.answer.set_exception(error)
    else:
        call.ended = time.monotonic()
        call.answer.set_result(answer)
    if call.ended > call.began + patience_s:
        on_late()
