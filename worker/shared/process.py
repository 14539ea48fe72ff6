"""Telling one process from another that later got the same number."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

UNDELIVERED = 4
"""Exit code of a worker whose last messages the server has not heard."""


def process_birth(pid: int) -> str | None:
    """When a live process began, in the kernel's own words; None if it is gone or only waits to be reaped."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else fields[19]
    return _birth_by_ps(pid)


def _birth_by_ps(pid: int) -> str | None:
    """MacOS and the BSDs have no /proc."""
    ps = shutil.which("ps")
    if ps is None:
        return None
    found = subprocess.run(
        [ps, "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()
    state, _, birth = found.partition(" ")
    return birth.strip() or None if state and not state.startswith("Z") else None


def note_process(folder: Path) -> None:
    """Write this process's number and birth to `pid.json`, whole or not at all."""
    aside = folder / f".pid.{os.getpid()}"
    aside.write_text(json.dumps({"pid": os.getpid(), "born": process_birth(os.getpid())}))
    aside.replace(folder / "pid.json")


def end_with_the_parent() -> None:
    """Have this process end when the one that holds the other end of its standard input does, however that happens."""
    threading.Thread(target=_wait_for_the_end, daemon=True).start()


def _wait_for_the_end() -> None:
    while os.read(0, 4096):  # sys.stdin would be locked by this thread when the interpreter shuts down, which aborts it
        pass
    os._exit(1)
