"""Loops of the server: no error, no log and no jump of the clock ends them, and a late one is seen."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import structlog
from apscheduler.schedulers.background import BackgroundScheduler

from orchestrator.entrypoints.background.log_lines import LogStream, SafeLogger
from orchestrator.entrypoints.background.loops import SCHEDULER, Every, Loop, Periodic
from orchestrator.services.rounds import Rounds

PATIENCE_S = 20.0


class Hand:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def gone(data: bytes) -> int:
    raise BrokenPipeError


class Disk:
    """A log file on a disk with room for some bytes."""

    def __init__(self, room: int) -> None:
        self.room, self.text, self.changed = room, b"", threading.Condition()

    def write(self, data: bytes) -> int:
        with self.changed:
            if not self.room:
                self.changed.notify_all()
                raise OSError(28, "No space left on device")
            fits = data[: self.room]
            self.text, self.room = self.text + fits, self.room - len(fits)
            self.changed.notify_all()
            return len(fits)

    def until(self, is_so: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(is_so, PATIENCE_S)


# --- the log ---


def test_a_log_without_a_reader_raises_nothing() -> None:
    """Guard: without the thread in `LogStream` the error of the pipe reached the loop that logged."""
    stream = LogStream(gone)
    for _ in range(100):
        print("a line", file=stream, flush=True)
    stream.finish(PATIENCE_S)


def test_a_reader_that_stopped_reading_holds_nobody_up() -> None:
    """Ctrl-S in a terminal. Guard: without the maximum, lines filled the memory."""
    reads, got = threading.Event(), list[bytes]()

    def slowly(data: bytes) -> int:
        reads.wait()
        got.append(data)
        return len(data)

    stream = LogStream(slowly, most=1000)
    began = time.monotonic()
    for _ in range(10_000):
        stream.write("x" * 100)
    assert time.monotonic() - began < PATIENCE_S / 2
    reads.set()
    stream.finish(PATIENCE_S)
    assert sum(map(len, got)) < 2000


def test_what_is_written_in_pieces_stays_one_line() -> None:
    disk = Disk(room=100)
    stream = LogStream(disk.write)
    print("one", "two", file=stream)
    print("three", file=stream)
    stream.finish(PATIENCE_S)
    assert disk.text == b"one two\nthree\n"


def test_a_full_disk_costs_lines_and_says_how_many() -> None:
    """Guard: without `_is_torn` the next line was glued to the half one."""
    disk = Disk(room=12)
    stream = LogStream(disk.write, retry_s=0.01)
    stream.write("one\n")
    stream.write("two is too long\n")
    disk.until(lambda: disk.room == 0)
    stream.write("three\n")
    with disk.changed:
        assert disk.changed.wait(PATIENCE_S)
        disk.room = 1000
    disk.until(lambda: disk.text.endswith(b"2 log lines could not be written\n"))  # though nobody logs any more
    stream.write("four\n")
    stream.finish(PATIENCE_S)
    lines = disk.text.decode().splitlines()
    assert lines == ["one", "two is t", "2 log lines could not be written", "four"]


def test_a_value_that_cannot_be_shown_raises_nothing() -> None:
    """Guard: without `SafeLogger` its error came out of `log.exception`, in the handler of another error."""

    class Bad:
        def __repr__(self) -> str:
            raise RuntimeError

    shown: list[str] = []
    log = structlog.wrap_logger(
        structlog.testing.CapturingLogger(),
        processors=[structlog.processors.KeyValueRenderer(), lambda *a: shown.append(str(a[2])) or a[2]],
        wrapper_class=SafeLogger,
    )
    log.error("first", value=Bad())
    log.error("second")
    assert len(shown) == 1
    assert "second" in shown[0]


# --- loops ---


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(1), KeyboardInterrupt(), MemoryError()])
def test_no_error_ends_a_loop(error: BaseException) -> None:
    """Guard: while only `Exception` was caught, a driver that exits ended reconciling for good."""
    wake, tried = threading.Event(), threading.Semaphore(0)

    def work() -> None:
        tried.release()
        raise error

    loop = Loop("reconcile", wake, work, Rounds(), every_s=1.0)
    loop.start()
    for _ in range(3):
        wake.set()
        assert tried.acquire(timeout=PATIENCE_S)
    assert not loop.revive()
    loop.stop()
    loop.join(PATIENCE_S)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_loop_whose_thread_ended_is_started_again() -> None:
    """Guard: without `revive` nothing noticed."""

    class Fragile(threading.Event):
        broken = True

        def clear(self) -> None:
            super().clear()
            if self.broken:
                raise SystemExit  # outside of what a round may raise

    wake, done = Fragile(), threading.Event()
    loop = Loop("reconcile", wake, done.set, Rounds(), every_s=1.0)
    loop.start()
    wake.set()
    loop.join(PATIENCE_S)
    wake.broken = False
    assert loop.revive()
    wake.set()
    assert done.wait(PATIENCE_S)
    loop.stop()
    loop.join(PATIENCE_S)
    assert not loop.revive()


def test_a_loop_that_hangs_is_late_and_then_is_not() -> None:
    hand = Hand()
    rounds = Rounds(hand)
    rounds.expect("reconcile", 130.0)
    rounds.ended("never begun")
    hand.now = 130.0
    assert rounds.late() == {}
    hand.now = 131.0
    assert rounds.late() == rounds.ages() == {"reconcile": 131.0}
    rounds.ended("reconcile")
    assert rounds.late() == {}
    hand.now = 1000.0
    rounds.forget("reconcile")
    assert rounds.late() == {}


# --- periodic work ---


@pytest.mark.parametrize("jump", [timedelta(days=365), timedelta(hours=2), timedelta(days=36_500)])
def test_missed_rounds_are_not_computed(jump: timedelta) -> None:
    """Guard: with APScheduler's interval, a year forward made 15 million times of a round of two seconds."""
    scheduler = BackgroundScheduler(timezone=UTC)
    job = scheduler.add_job(print, Every(2.0), id="round")
    scheduler.start(paused=True)
    try:
        now = datetime.now(UTC)
        assert len(job._get_run_times(now + jump)) == 1
        assert Every(2.0).get_next_fire_time(now, now + jump) == now + jump + timedelta(seconds=2)
    finally:
        scheduler.shutdown(wait=False)


@pytest.mark.parametrize("jump", [timedelta(days=365), timedelta(hours=2)])
def test_a_clock_set_back_delays_no_round(jump: timedelta) -> None:
    """Every round is due in two hours then, as after a jump back.

    Guard: without the new time in `revive` no round came for so long.
    """
    rounds, again = Rounds(), threading.Semaphore(0)
    periodic = Periodic(rounds)
    periodic.every(0.01, "tick", again.release)
    periodic.start()
    try:
        assert again.acquire(timeout=PATIENCE_S)
        real = datetime.now(UTC)
        for job in periodic._scheduler.get_jobs():
            job.modify(next_run_time=real + jump)
        while again.acquire(blocking=False):
            pass
        periodic.revive()
        assert again.acquire(timeout=PATIENCE_S)
    finally:
        periodic.stop()


def test_a_scheduler_that_does_nothing_is_replaced() -> None:
    """Guard: without the look at `late`, a scheduler whose thread had ended was never noticed."""
    hand = Hand()
    rounds, again = Rounds(hand), threading.Semaphore(0)
    periodic = Periodic(rounds)
    periodic.every(0.01, "tick", again.release)
    periodic.start()
    first = periodic._scheduler
    first.shutdown(wait=True)
    while again.acquire(blocking=False):
        pass
    hand.now += 1000.0
    assert SCHEDULER in rounds.late()
    periodic.revive()
    try:
        assert again.acquire(timeout=PATIENCE_S)
        assert SCHEDULER not in rounds.late()
    finally:
        periodic.stop()


# --- a real server ---

# Calls the address within `on_ready`. Guard: while uvicorn alone listened, a fast caller of a ready server was refused.
SERVER = """
import socket, sys
from urllib.parse import urlsplit
from orchestrator.config import Settings
from orchestrator.entrypoints.background import server
quick = {"reconcile_s": 0.05, "tick_s": 0.05, "letters_s": 0.05}
settings = Settings(data_dir=sys.argv[1], port=0, offline=True, **quick)
def on_ready(ready):
    at = urlsplit(ready.url)
    socket.create_connection((at.hostname, at.port)).close()
    print(ready.url, flush=True)
server.run(settings, on_ready=on_ready)
"""
AGE = re.compile(r'^trainhop_loop_round_age_seconds\{loop="reconcile"\} (\S+)$', re.MULTILINE)


def rounds_end(url: str, count: int) -> None:
    """Wait until so many rounds have ended, which sets the age of the last one back."""
    before, until = 0.0, time.monotonic() + PATIENCE_S
    while count:
        found = AGE.search(httpx.get(f"{url}/metrics").text)
        assert found is not None
        age = float(found[1])
        count -= age < before
        before = age
        assert time.monotonic() < until, f"the last round ended {age} s ago"


def test_a_server_whose_log_has_no_reader_goes_on(tmp_path: Path) -> None:
    """`trainhop up 2>&1 | tee log`, and tee has ended. Every round fails, because a table is missing.

    Guard: with structlog's own stream, the thread of reconciling was dead after the first line.
    """
    reader, writer = os.pipe()
    command = [sys.executable, "-c", SERVER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=writer, text=True) as process:
        os.close(writer)
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            rounds_end(url, 1)
            os.close(reader)
            with contextlib.closing(sqlite3.connect(tmp_path / "trainhop.db")) as database:
                database.execute("ALTER TABLE discarded RENAME TO gone")
            rounds_end(url, 5)
            assert httpx.get(f"{url}/readyz").text == "ready\n"
        finally:
            process.terminate()
