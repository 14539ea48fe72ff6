"""Calls a function in a process of its own, with limited memory and time. Request and answer are JSON.

What reads a stranger's file runs here: however little memory a file leaves, and however long it takes to read, the
caller only hears of it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from worker.shared.process import tied, variables

MAX_MEMORY_BYTES = 448 * 2**20
LITTLE_MEMORY = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # others reserve more than they use
    "OMP_NUM_THREADS": "1",
    "ARROW_IO_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
}
"""Variables of a process with a limit of memory."""


class LimitError(Exception):
    """The function needed more memory or time than it may have. The message names the limit."""


def call(function: str, request: dict[str, Any], *, cpu_s: int, memory_bytes: int = MAX_MEMORY_BYTES) -> Any:
    """The answer of `module:name` to the request. Raises `LimitError`."""
    command = [sys.executable, "-m", "worker.shared.limited_call", function, str(cpu_s), str(memory_bytes)]
    wait_s = 4.0 * cpu_s + 30.0
    try:
        done = subprocess.run(
            tied(command),
            input=json.dumps(request),
            capture_output=True,
            text=True,
            env=_environment(),
            timeout=wait_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LimitError(f"it took longer than {wait_s:.0f} s") from None
    if done.returncode == 0:
        return json.loads(done.stdout)
    if _memory_is_the_reason(done):
        raise LimitError(f"it needs more than {memory_bytes >> 20} MiB of memory")
    raise LimitError(f"it needs more than {cpu_s} s of computing time, or stopped the program that reads it")


def _memory_is_the_reason(done: subprocess.CompletedProcess[str]) -> bool:
    return any(word in done.stderr for word in ("MemoryError", "bad_alloc", "malloc of size", "realloc of size"))


def _environment() -> dict[str, str]:
    paths = [path for path in sys.path if path and Path(path).exists()]
    return variables() | LITTLE_MEMORY | {"PYTHONPATH": os.pathsep.join(paths)}


def _answer() -> None:
    function, cpu_s, memory_bytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    module, _, name = function.partition(":")
    found = getattr(importlib.import_module(module), name)
    with contextlib.suppress(ValueError, OSError):  # not every system has each of these limits
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    json.dump(found(json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    _answer()
