"""A clock that only the simulation moves, and writers of which one runs at a time.

Each writer is a thread. It runs until it waits; then the one that wakes first runs. So a schedule depends on its seed
alone. Requests take time, and things go wrong with them.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


class KilledError(BaseException):
    """The machine of this writer is gone."""


@dataclass
class _Writer:
    act: Callable[[], object]
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    is_killed: bool = False


@dataclass(frozen=True, kw_only=True)
class Odds:
    """Probabilities for each request: occupied; cut before or after it was carried out; carried out up to `late_s`
    after the caller was cut off; a read that shows an older state; a file that is stored damaged; the machine stands
    still for up to `asleep_s`; it dies."""

    busy: float = 0.04
    cut: float = 0.02
    done: float = 0.04
    late: float = 0.02
    stale: float = 0.15
    flip: float = 0.03
    asleep: float = 0.01
    dead: float = 0.004
    late_s: float = 60.0
    asleep_s: float = 4000.0


CALM = Odds(busy=0, cut=0, done=0, late=0, stale=0, flip=0, asleep=0, dead=0)


class Simulation:
    """One schedule. `dice` decides everything that is left to chance."""

    def __init__(self, seed: int, odds: Odds | None = None) -> None:
        self.dice, self.odds, self.now = random.Random(seed), odds or Odds(), 0.0
        self.faults = 0
        self._queue: list[tuple[float, int, _Writer | Callable[[], object]]] = []
        self._count = itertools.count()
        self._idle = threading.Semaphore(0)
        self._running: _Writer | None = None
        self._error: BaseException | None = None

    def clock(self) -> float:
        return self.now

    def start(self, act: Callable[[], object], after_s: float = 0.0) -> None:
        """Begin a writer after this time."""
        writer = _Writer(act)
        threading.Thread(target=self._body, args=(writer,), daemon=True).start()
        self._at(after_s, writer)

    def run(self) -> None:
        """Until every writer has ended. Raises what none of them expected."""
        while self._queue:
            self.now, _, due = heapq.heappop(self._queue)
            if isinstance(due, _Writer):
                self._running = due
                due.turn.release()
                self._idle.acquire()
            else:
                due()
            if self._error is not None:
                raise self._error

    def sleep(self, seconds: float) -> None:
        """Called by a writer."""
        writer = self._running
        assert writer is not None
        self._at(seconds, writer)
        self._idle.release()
        writer.turn.acquire()

    def _at(self, after_s: float, due: _Writer | Callable[[], object]) -> None:
        heapq.heappush(self._queue, (self.now + after_s, next(self._count), due))

    def _body(self, writer: _Writer) -> None:
        writer.turn.acquire()
        try:
            writer.act()
        except KilledError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised by `run`
            self._error = error
        self._idle.release()

    # --- requests ---

    def hits(self, probability: float) -> bool:
        """Whether something with this probability happens."""
        return self.dice.random() < probability

    def travel(self) -> None:
        """A part of a request's time, in which the machine may stop."""
        if self.hits(self.odds.dead):
            raise KilledError
        self.sleep(self.dice.uniform(0, self.odds.asleep_s) if self.hits(self.odds.asleep) else self.dice.random())

    def request(
        self, act: Callable[[], T], *, busy: Callable[[], Exception], cut: Callable[[], Exception], writes: bool = False
    ) -> T:
        """Carry out a request. `busy` and `cut` make the errors that the place's client raises."""
        self.travel()
        odds, value = self.odds, self.dice.random()
        self.faults += value < odds.busy + odds.cut + odds.done + odds.late
        if value < odds.busy:
            raise busy()
        if value < odds.busy + odds.cut:
            raise cut()
        if writes and value < odds.busy + odds.cut + odds.late:
            self._at(self.dice.uniform(0, odds.late_s), lambda: _quietly(act))
            raise cut()
        result = act()
        if writes and value < odds.busy + odds.cut + odds.late + odds.done:
            raise cut()
        self.travel()
        return result

    def stored(self, content: bytes) -> bytes:
        """These bytes, or damaged ones."""
        return content[:-1] + b"?" if self.hits(self.odds.flip) else content

    def state(self, history: list[T]) -> T:
        """The newest of these states, or one that is a little older."""
        return history[-min(len(history), self.dice.randint(2, 4))] if self.hits(self.odds.stale) else history[-1]


def _quietly(act: Callable[[], object]) -> None:
    with contextlib.suppress(Exception):  # nobody waits for the answer
        act()
