"""What bounds a session until its first step: a limit for each part of its beginning, and an end for what moves no byte.

Until then nothing can be lost, and much may hang where Python cannot interrupt it: a library's import, a download in compiled
code, the meeting of several GPUs. So a thread of its own leaves, whatever the main thread is doing.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import select
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from worker.agent.deadline import Budget
from worker.shared import causes

MAX_WAIT_S = 3_600.0
MAX_GOODBYE_S = 360.0
"""More than any last word takes."""


class Part(Enum):
    """What a session does before its first step: in words, and the cause that it names if it ends there."""

    DATA = ("downloading the training data", causes.DATA)
    MODEL = ("downloading the base model", causes.MODEL)
    INSTALL = ("installing unsloth", causes.INSTALL)
    IMPORTS = ("importing the training libraries", causes.IMPORTS)
    GROUP = ("starting a process for each GPU", causes.GPUS)
    LOAD = ("loading the base model", causes.IMPORTS)
    FIRST_STEP = ("making the first step", causes.NO_STEP)

    def __init__(self, words: str, cause: str) -> None:
        self.words, self.cause = words, cause


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Seconds on a monotonic clock.

    A download may go `stall_s` without a byte before it is begun anew, and the store of the training data `data_s` before the
    session leaves. `pause_s` is waited after a hub's first "too many requests" that names no time, twice as long after each
    further one. `last_resort_s` after a limit a process ends whose interpreter is held by what hangs, so that no thread of it
    can say anything.
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
        """How long a part may take; None for one that is bounded by what arrives, or only by the session's time."""
        limits = {
            Part.INSTALL: self.install_s,
            Part.IMPORTS: self.imports_s,
            Part.GROUP: self.group_s,
            Part.LOAD: self.load_s,
        }
        return limits.get(part)


@dataclass(frozen=True)
class Ending:
    """What is said of a session that leaves, in the fields of `Release`."""

    reason: str
    detail: str = ""
    cause: str = ""


class Watch:
    """Ends the process when a part takes too long, when time is up, or when asked; until the first step is done.

    `leave(ending)` says the last word and returns the exit code; `signalled()` hears of SIGTERM and SIGINT even while the
    main thread cannot. Both are called on the thread of the watch.
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
        # Both ends stay open: signals go on ringing when nobody watches any more.
        self._ear: socket.socket | None = None
        self._bell: socket.socket | None = None

    def start(self) -> None:
        """Begin to watch; on the main thread, after the handlers of the signals are set."""
        self._ear, self._bell = socket.socketpair()
        self._bell.setblocking(False)
        signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        # A forked child that is ended by SIGTERM must not ring here.
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
        threading.Thread(target=self._run, args=(self._ear,), name="watch", daemon=True).start()

    def begins(self, part: Part) -> None:
        """The session begins another part; its limit counts from now."""
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
        """Leave now, with these words; False if the first step is done. Takes no lock, so a signal's handler may call it."""
        self._asked = self._asked or ending
        self._ring()
        return not self._is_past

    def passed(self) -> None:
        """The first step is done, or the main thread leaves by itself; it waits here for the end if the watch is leaving."""
        with self._lock:
            self._is_past = not self._is_leaving
        if self._is_leaving:
            threading.Event().wait()
        if self._bell is not None:
            faulthandler.cancel_dump_traceback_later()
        self._ring()

    def _ring(self) -> None:
        if self._bell is not None:
            with contextlib.suppress(BlockingIOError):  # it has been rung often enough
                self._bell.send(b"\0")

    def _run(self, ear: socket.socket) -> None:
        while True:
            rung, _, _ = select.select([ear], [], [], self._patience_s())
            if rung and any(ear.recv(256)):  # a byte that is not ours is the number of a signal
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
            words = f"this session's time was over while it was {part.words}; give the job longer sessions"
            return Ending("deadline", words, part.cause)
        if time.monotonic() >= self._until:
            words = f"{part.words} took longer than {self._limits.of(part):.0f} s; the job is tried on another machine"
            return Ending("unfit", words, part.cause)
        return None


@contextlib.contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """End this process, with where each thread stands in its log, if the block takes longer; whatever holds the interpreter."""
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
    """What a child process prints; None if it was ended because `moved()` gave the same number for `stall_s` seconds.

    Its standard input ends when this process does.
    """
    with tempfile.TemporaryFile("w+") as printed:
        child = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=printed)
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


def full_disk(error: BaseException) -> str:
    """What to say if this error means that the disk is full, or nothing; libraries in compiled code say it in words only."""
    for each in _chain(error):
        if getattr(each, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(each):
            name = getattr(each, "filename", None)
            where = f"no space is left for {name}" if name else "no space is left"
            return f"the disk of this machine is full: {where}; free some, or use a machine with a larger disk"
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
