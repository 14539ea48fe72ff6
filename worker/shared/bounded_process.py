"""A program that runs under limits: it is ended when it writes nothing, when its time is over, and with whoever runs it.

Standard library only: pip is run this way before anything is installed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Limits:
    """`stall_s`: seconds in which not one byte is written; `whole_s`: seconds altogether."""

    stall_s: float = 120.0
    whole_s: float = 900.0
    look_every_s: float = 1.0


class OutOfTimeError(Exception):
    """The program was ended; the message says after what."""


def run(
    command: Sequence[str], limits: Limits, *, watched: Path | None = None, environment: Mapping[str, str] | None = None
) -> str:
    """Run a program and return what it printed on both of its outputs.

    `watched` is the folder that it writes to; without one only `whole_s` counts. Whatever ends this call ends the program
    and all that it has started. Raises `OutOfTimeError`, or `subprocess.CalledProcessError` with what was printed in `output`.
    """
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said = _watch(process, limits, watched)
    finally:
        _end(process)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, said)
    return said


def _watch(process: subprocess.Popen[str], limits: Limits, watched: Path | None) -> str:
    began = moved = time.monotonic()
    size = 0
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=limits.look_every_s)[0]
        now, found = time.monotonic(), size_of(watched) if watched else 0
        if found != size:
            size, moved = found, now
        if watched and now - moved > limits.stall_s:
            raise OutOfTimeError(f"it wrote nothing for {limits.stall_s:.0f} s")
        if now - began > limits.whole_s:
            raise OutOfTimeError(f"it took longer than {limits.whole_s:.0f} s")


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.stdout is not None:
        process.stdout.close()
    process.wait()


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; those that vanish meanwhile count nothing."""
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(here, name).stat(follow_symlinks=False).st_size
    return total
