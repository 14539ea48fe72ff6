"""The data checks that a server is running."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from orchestrator.services.single_flight import SingleFlight
from worker.shared import limited_call
from worker.shared.data_checks.findings import Report

AT_ONCE = 2
MAX_WAITING = 8
MAX_COMPARED = 16
SUBMIT_WAIT_S, PLAN_WAIT_S = 30.0, 3.0
MEMORY_BYTES = 1 << 30


@dataclass
class RunningChecks:
    """`checking` and `copying` hold calls that are running, by file. `room` limits their processes.

    A submit waits `submit_wait_s` seconds for the check of its data, a plan `plan_wait_s`. `call` calls a function in a
    process with limits. A process has at most `memory_bytes`. `waiting`
    limits the requests that wait, because each of them keeps a thread of the server. `comparing` limits the comparisons
    of files that have begun or wait for room: a member can ask for many with few files.
    """

    checking: SingleFlight[Report] = field(default_factory=SingleFlight[Report])
    copying: SingleFlight[str] = field(default_factory=SingleFlight[str])
    submit_wait_s: float = SUBMIT_WAIT_S
    plan_wait_s: float = PLAN_WAIT_S
    memory_bytes: int = MEMORY_BYTES
    call: Callable[..., Any] = limited_call.call
    room: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(AT_ONCE))
    comparing: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(MAX_COMPARED))
    waiting: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(MAX_WAITING))

    @contextmanager
    def patience(self, wait_s: float) -> Generator[float]:
        """The seconds that a request may wait: none if too many others wait already."""
        may_wait = wait_s > 0 and self.waiting.acquire(blocking=False)
        try:
            yield wait_s if may_wait else 0.0
        finally:
            if may_wait:
                self.waiting.release()
