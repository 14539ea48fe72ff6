"""Loops that no error ends: a thread that works on an event, and periodic rounds that no jump of the clock stops."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from apscheduler.schedulers import SchedulerNotRunningError
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger

from orchestrator.services.rounds import LATE_S, Rounds

log = structlog.get_logger()

SCHEDULER = "scheduler"
"""The name of the periodic rounds as a loop."""
PULSE_S = 2.0
SLACK = timedelta(seconds=5)


def guarded(rounds: Rounds, name: str, work: Callable[[], object]) -> None:
    """One round. Its error is logged, and the next round tries again."""
    try:
        work()
    except BaseException:
        log.exception("a round failed; retrying in the next one", round=name)
    rounds.ended(name)


class Loop:
    """A thread that does a round each time its event is set. Setting it twice has no effect."""

    def __init__(
        self, name: str, event: threading.Event, work: Callable[[], object], rounds: Rounds, *, every_s: float
    ) -> None:
        self._name, self._event, self._work, self._rounds, self._every_s = name, event, work, rounds, every_s
        self._is_over = False
        self._thread = self._made()

    def _made(self) -> threading.Thread:
        return threading.Thread(target=self._run, name=self._name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._rounds.expect(self._name, self._every_s + LATE_S)
        self._thread.start()

    def revive(self) -> bool:
        """Start another thread if this one has ended without `stop`. Returns whether that was needed."""
        if self._is_over or self._thread.is_alive():
            return False
        self._thread = self._made()
        self._thread.start()
        return True

    def stop(self) -> None:
        """End after the current round."""
        self._is_over = True
        self._event.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the current round."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._is_over:
            self._event.wait()
            self._event.clear()
            if not self._is_over:
                guarded(self._rounds, self._name, self._work)


class Every(BaseTrigger):
    """Fires some time after the last time. Missed times are not made up, however many the clock has jumped over."""

    def __init__(self, seconds: float) -> None:
        self.period = timedelta(seconds=seconds)

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        return now + self.period

    def __str__(self) -> str:
        return f"every {self.period}"


class Periodic:
    """Rounds at fixed intervals, by APScheduler.

    It waits by the wall clock. `revive` starts a round whose time a jump of the clock has moved away, and replaces a
    scheduler that does nothing any more.
    """

    def __init__(self, rounds: Rounds) -> None:
        self._rounds = rounds
        self._works: dict[str, tuple[float, Callable[[], object]]] = {}
        self._scheduler: Any = None
        self._jobs: list[Any] = []
        self.every(PULSE_S, SCHEDULER, lambda: None)

    def every(self, seconds: float, name: str, work: Callable[[], object]) -> None:
        """Do a round of `work` this often, but never two at once."""
        self._works[name] = (seconds, work)

    def start(self) -> None:
        """Start the rounds."""
        for name, (seconds, _) in self._works.items():
            self._rounds.expect(name, seconds + LATE_S)
        self._scheduler = self._started()

    def _started(self) -> Any:
        defaults = {"max_instances": 1, "coalesce": True, "misfire_grace_time": None}
        scheduler: Any = BackgroundScheduler(job_defaults=defaults, timezone=UTC)
        self._jobs = []
        for name, (seconds, work) in self._works.items():
            self._jobs.append(scheduler.add_job(guarded, Every(seconds), args=(self._rounds, name, work), id=name))
        scheduler.start()
        return scheduler

    def revive(self, now: datetime | None = None) -> None:
        """Keep the rounds going. `now` is the computer's time."""
        if SCHEDULER in self._rounds.late():
            log.warning("periodic work has stopped; starting it again")
            # Aside, because a scheduler that hangs may keep its lock.
            threading.Thread(target=_abandon, args=(self._scheduler,), daemon=True).start()
            self.start()
            return
        now = now or datetime.now(UTC)
        for job in self._jobs:  # `get_jobs` would wait for the lock
            if job.next_run_time > now + job.trigger.period + SLACK:
                job.modify(next_run_time=now)

    def stop(self) -> None:
        """Start no more rounds."""
        if self._scheduler is not None:
            _abandon(self._scheduler)


def _abandon(scheduler: Any) -> None:
    with contextlib.suppress(SchedulerNotRunningError):
        scheduler.shutdown(wait=False)
