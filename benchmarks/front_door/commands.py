"""Measures how soon the command line answers."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.lab import lab
from benchmarks.report import Figure

RUNS, JOBS = 11, 50
HELP_S, LIST_S = 0.4, 0.8
COMMAND = (sys.executable, "-m", "orchestrator.entrypoints.cli.main")


def commands(folder: Path) -> Iterator[Figure]:
    """Seconds of `trainhop --help`, and of `trainhop ls` against a running server with jobs. Medians.

    A busy machine takes longer. The seconds of a processor and the ratio to `python -c pass` at the same time tell.
    """
    with lab(folder, local_slots=0, offline=True) as server:
        data = server.upload(_rows(folder))
        for number in range(JOBS):
            server.post("/jobs", _job(number, data))
        asked = (*COMMAND, "--data-dir", str(server.data), "ls")
        yield from _measured("trainhop --help", (*COMMAND, "--help"), HELP_S)
        yield from _measured(f"trainhop ls, {JOBS} jobs", asked, LIST_S)


def _rows(folder: Path) -> Path:
    rows = folder / "rows.jsonl"
    rows.write_text('{"text": "a"}\n{"text": "b"}\n')
    return rows


def _job(number: int, data: str) -> dict[str, object]:
    return {
        "name": f"job {number}",
        "base_model": "org/small",
        "datasets": [{"path": data}],
        "max_steps": 10,
        "global_batch_size": 2,
    }


def _measured(name: str, command: Sequence[str], bar: float) -> Iterator[Figure]:
    """Taken in turns with an empty program, so that both have the same machine."""
    took, empty = list[tuple[float, float]](), list[tuple[float, float]]()
    _run(command)  # the first one compiles
    for _ in range(RUNS):
        empty.append(_run((sys.executable, "-c", "pass")))
        took.append(_run(command))
    (median, processor), (nothing, _) = (map(statistics.median, zip(*runs, strict=True)) for runs in (took, empty))
    yield Figure(name=f"{name}, s", value=round(median, 2), bar=f"<= {bar} on a quiet machine", ok=median <= bar)
    yield Figure(name=f"{name}, s of a processor", value=round(processor, 2), bar="no bar", ok=True)
    yield Figure(name=f"{name}, times `python -c pass`", value=round(median / nothing, 1), bar="no bar", ok=True)


def _run(command: Sequence[str]) -> tuple[float, float]:
    """Seconds until the command has ended, and those that it used of a processor."""
    began = time.monotonic()
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(running.pid, 0)
    running.returncode = os.waitstatus_to_exitcode(status)
    assert running.returncode == 0, command
    return time.monotonic() - began, used.ru_utime + used.ru_stime
