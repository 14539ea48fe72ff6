"""Bringing what a worker needs into the running interpreter's environment: only what is missing, and never torch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from worker.bundle import requirements
from worker.notebook.errors import NotebookError


def needed(extra: str = "") -> list[str]:
    """Requirements that the environment does not meet."""
    return [line for line in requirements(extra) if not _is_met(line)]


def _is_met(line: str) -> bool:
    from packaging.requirements import Requirement  # every Jupyter kernel depends on it

    wanted = Requirement(line)
    try:
        return wanted.specifier.contains(metadata.version(wanted.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


def install(lines: list[str]) -> None:
    """Install with pip, holding torch at what is there; raises `NotebookError` with pip's own last word."""
    if not lines:
        return
    with tempfile.TemporaryDirectory() as folder:
        held = Path(folder, "held.txt")
        held.write_text(f"torch=={metadata.version('torch')}\n" if importlib.util.find_spec("torch") else "")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(held)]
        done = subprocess.run([*command, *lines], capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise NotebookError(f"the packages {', '.join(lines)} could not be installed ({why})")
    importlib.invalidate_caches()
