"""Bringing what a worker needs into the running interpreter's environment: only what is missing, and never torch."""

from __future__ import annotations

import importlib
import subprocess

from worker.bundle import requirements
from worker.install import lacking, pip, why
from worker.notebook.errors import NotebookError


def needed(extra: str = "") -> list[str]:
    """Requirements that the environment does not meet."""
    return lacking(requirements(extra))


def install(lines: list[str]) -> None:
    """Install with pip; raises `NotebookError` with pip's own last word."""
    try:
        pip(lines)
    except subprocess.CalledProcessError as error:
        raise NotebookError(f"the packages {', '.join(lines)} could not be installed ({why(error)})") from error
    importlib.invalidate_caches()
