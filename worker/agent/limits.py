"""Limits of a session until its first step: a time limit for each part, and an end for a stalled download.

Until then no progress can be lost, and several parts can hang where Python cannot interrupt them: the import of a
library, a download in compiled code, the connection of several GPUs. So a separate thread ends the process, whatever
the main thread does.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import logging
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from multiprocessing.connection import wait
from typing import TypeVar

from worker.agent.deadline import Budget
from worker.shared import causes
from worker.shared.process import tied

T = TypeVar("T")
MAX_WAIT_S = 3_600.0
ROOM_S, ROOM_EVERY_S = 600.0, 2.0
"""How long, and how often, the last files of a session wait for room on a full disk."""
MAX_GOODBYE_S = 360.0
"""Longer than any last message takes."""


class Part(Enum):
    """A part of a session before its first step: its description, and the cause if the session ends there."""

    DATA = ("downloading the training data", causes.DATA)
    MODEL = ("downloading the base model", causes.MODEL)
    JUDGE = ("downloading the judge model", causes.MODEL)
    INSTALL = ("installing unsloth or lm-eval", causes.INSTALL)
    IMPORTS = ("importing the training libraries", causes.IMPORTS)
    GROUP = ("starting a process for each GPU", causes.GPUS)
    LOAD = ("loading the base model", causes.IMPORTS)
    LOAD_JUDGE = ("loading the judge model", causes.IMPORTS)
    ROWS = ("checking the rows of the data", causes.DATA)
    FIRST_STEP = ("making the first step", causes.NO_STEP)
    EXPORT = ("exporting the adapter", causes.NO_STEP)
    CHAT = ("answering questions", causes.NO_STEP)

    def __init__(self, words: str, cause: str) -> None:
        self.words, self.cause = words, cause


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Seconds on a monotonic clock.

    A download is restarted after `stall_s` without a byte. The session ends if the store of the training data is
    unreachable for `data_s`. `pause_s` is the wait after a hub's first "too many requests" without a time, and doubles
    each time. If a library blocks the interpreter, no thread can report, and the process ends `last_resort_s` after its
    limit.
    """

    stall_s: float = 120.0
    data_s: float = 1_800.0
    pause_s: float = 60.0
    longest_pause_s: float = 900.0
    install_s: float = 900.0
    imports_s: float = 600.0
    group_s: float = 180.0
    load_s: float = 3_600.0
    last_resort_s: float = 60.0

    def of(self, part: Part) -> float | None:
        """The limit of a part. None for a part that is limited by its data rate or by the session's time."""
        limits = {
            Part.INSTALL: self.install_s,
            Part.IMPORTS: self.imports_s,
            Part.GROUP: self.group_s,
            Part.LOAD: self.load_s,
            Part.LOAD_JUDGE: self.load_s,
        }
        return limits.get(part)


@dataclass(frozen=True)
class Ending:
    """The end of a session, in the fields of `Release`."""

    reason: str
    detail: str = ""
    cause: str = ""
    has_remedy: bool = False


class Watch:
    """Ends the process if a part takes too long, if time is up, or on request, until the first step is done.

    `leave(ending)` sends the last message and returns the exit code. `signalled()` is called for SIGTERM and SIGINT,
    even if the main thread is blocked. Both are called on the thread of the watch.
    """

    def __init__(
        self, limits: Limits, budget: Budget, *, leave: Callable[[Ending], int], signalled: Callable[[], None]
    ) -> None:
        self._limits, self._budget = limits, budget
        self._leave, self._signalled = leave, signalled
        self._lock = threading.Lock()
        self._part, self._until = Part.DATA, float("inf")
        self._asked: Ending | None = None
        self._is_past = self._is_leaving = False
        # Both ends stay open, because signals are still written after the watch has ended.
        self._ear: socket.socket | None = None
        self._bell: socket.socket | None = None

    def start(self) -> None:
        """Start to watch. Call it on the main thread, after the signal handlers are set."""
        self._ear, self._bell = socket.socketpair()
        self._bell.setblocking(False)
        signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        # SIGTERM in a forked child must not write here.
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
        threading.Thread(target=self._run, args=(self._ear,), name="watch", daemon=True).start()

    def begins(self, part: Part) -> None:
        """The session begins another part. Its limit counts from now."""
        limit = self._limits.of(part)
        with self._lock:
            if self._is_past:
                return
            self._part = part
            self._until = float("inf") if limit is None else time.monotonic() + limit
        if self._bell is not None:
            left = max(0.0, self._budget.left)
            faulthandler.dump_traceback_later(min(left, limit or left) + self._limits.last_resort_s, exit=True)
        self._ring()

    def ask(self, ending: Ending) -> bool:
        """End the process now with this ending. False if the first step is done.

        Takes no lock, so a signal handler may call it.
        """
        self._asked = self._asked or ending
        self._ring()
        return not self._is_past

    def passed(self) -> None:
        """The first step is done, or the main thread ends by itself.

        If the watch is ending the process, the call waits here.
        """
        with self._lock:
            self._is_past = not self._is_leaving
        if self._is_leaving:
            threading.Event().wait()
        if self._bell is not None:
            faulthandler.cancel_dump_traceback_later()
        self._ring()

    def _ring(self) -> None:
        if self._bell is not None:
            with contextlib.suppress(BlockingIOError):  # the socket has enough unread bytes
                self._bell.send(b"\0")

    def _run(self, ear: socket.socket) -> None:
        while True:
            # Any byte other than our own is the number of a signal.
            if wait([ear], self._patience_s()) and any(ear.recv(256)):
                self._signalled()
            with self._lock:
                if self._is_past:
                    return
                ending = self._asked or self._overdue()
                self._is_leaving = ending is not None
            if ending is not None:
                code = 1
                faulthandler.dump_traceback_later(MAX_GOODBYE_S, exit=True)
                try:
                    code = self._leave(ending)
                finally:
                    os._exit(code)

    def _patience_s(self) -> float:
        wait = min(self._until - time.monotonic(), self._budget.left - self._budget.margin, MAX_WAIT_S)
        return max(0.0, wait)

    def _overdue(self) -> Ending | None:
        part = self._part
        if self._budget.left <= self._budget.margin:
            words = f"this session reached its time limit while it was {part.words}; allow longer sessions"
            return Ending("deadline", words, part.cause)
        if time.monotonic() >= self._until:
            words = f"{part.words} took longer than {self._limits.of(part):.0f} s"
            return Ending("unfit", words, part.cause)
        return None


@contextlib.contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """End this process if the block takes longer, and log the stack of each thread.

    That works even if a library blocks the interpreter.
    """
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def bounded(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    moved: Callable[[], int],
    stall_s: float,
    look_every_s: float = 1.0,
) -> str | None:
    """The output of a child process. None if it was ended because `moved()` did not change for `stall_s` seconds.

    Its standard input closes when this process ends.
    """
    with tempfile.TemporaryFile("w+") as printed:
        child = subprocess.Popen(tied(command), env=environment, stdin=subprocess.PIPE, stdout=printed)
        try:
            seen, since = moved(), time.monotonic()
            while not _ends_within(child, look_every_s):
                now = moved()
                if now != seen:
                    seen, since = now, time.monotonic()
                elif time.monotonic() - since >= stall_s:
                    return None
        finally:
            child.kill()
            child.wait()
            assert child.stdin is not None
            child.stdin.close()
        printed.seek(0)
        return printed.read()


def _ends_within(child: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def when_there_is_room(
    work: Callable[[], T],
    *,
    patience_s: float = ROOM_S,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """Do work that can be repeated, and repeat it while the disk is full. Raises its error after `patience_s`."""
    until = clock() + patience_s
    while True:
        try:
            return work()
        except Exception as error:
            words = full_disk(error)
            if not words or clock() >= until:
                raise
            logging.getLogger(__name__).warning("%s; trying again", words)
        sleep(ROOM_EVERY_S)


def full_disk(error: BaseException) -> str:
    """The message if this error means that the disk is full, else "".

    Libraries in compiled code only report it as text.
    """
    for each in _chain(error):
        if getattr(each, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(each):
            name = getattr(each, "filename", None)
            where = f"no space is left for {name}" if name else "no space is left"
            return f"the disk of this machine is full: {where}; free some space, or use a machine with a larger disk"
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
