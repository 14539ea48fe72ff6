"""Runs a program under limits: it is killed if it stops writing, runs too long, or its caller ends.

Standard library only: pip runs this way before anything is installed.
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

from worker.shared.process import postponed, tied


@dataclass(frozen=True, kw_only=True)
class Limits:
    """`stall_s`: maximum seconds without new bytes. `whole_s`: maximum seconds in total."""

    stall_s: float = 120.0
    whole_s: float = 900.0
    look_every_s: float = 1.0


class OutOfTimeError(Exception):
    """The program was killed. The message names the limit."""


def run(
    command: Sequence[str], limits: Limits, *, watched: Path | None = None, environment: Mapping[str, str] | None = None
) -> str:
    """Run a program and return the text of stdout and stderr.

    `watched` is the folder that the program writes to. Without it only `whole_s` applies. If this call ends, so do the
    program and all processes that it started. Raises `OutOfTimeError`, or `subprocess.CalledProcessError` with the text
    in `output`.
    """
    with contextlib.ExitStack() as at_the_end:
        with postponed(signal.SIGTERM):
            process = subprocess.Popen(
                tied(command),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            at_the_end.callback(_end, process)
        output = _watch(process, limits, watched)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output)
    return output


def _watch(process: subprocess.Popen[str], limits: Limits, watched: Path | None) -> str:
    began = moved = time.monotonic()
    size = 0
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=limits.look_every_s)[0]
        now, current_size = time.monotonic(), size_of(watched) if watched else 0
        if current_size != size:
            size, moved = current_size, now
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
    """Bytes of all files below a folder. Files that disappear during the count are ignored."""
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(here, name).stat(follow_symlinks=False).st_size
    return total
