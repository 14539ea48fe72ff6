"""What a cell needs and its kernel lacks, from folders of our own: nothing in the person's environment is changed."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from worker.notebook.errors import NotebookError
from worker.shared.package_folder import home, ready
from worker.shared.packages import InstallError, every_line, installed, lacking
from worker.shared.wheel import requirements

CELL = ("httpx", "pydantic")
"""What the cell itself imports. The worker, in a process of its own, needs more."""


@contextlib.contextmanager
def borrowed() -> Iterator[None]:
    """Inside the block the cell finds what it imports; where that is the kernel's own, nothing happens.

    What the kernel lacks comes last on its path, so that nothing of the person's is ever replaced.
    Raises `NotebookError`.
    """
    lines = lacking(line for line in requirements() if _name(line) in CELL)
    if old := [line for line in lines if installed(_name(line))]:
        named = ", ".join(f"{_name(line)} {installed(_name(line))}" for line in old)
        raise NotebookError(
            f"this kernel's {named} is too old: run `pip install -U {' '.join(map(_name, old))}`, restart the kernel, and "
            "run this cell again"
        )
    if not lines:
        yield
        return
    folder, inherited = str(_folder(lines)), os.environ.get("PYTHONPATH")
    sys.path.append(folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [inherited, folder]))  # for the processes of the cell
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(folder)
        os.environ.pop("PYTHONPATH") if inherited is None else os.environ.update(PYTHONPATH=inherited)


def needed() -> list[str]:
    """Names of the packages that the worker lacks on this machine, and that no session before has brought here."""
    lines = every_line()
    return [_name(line) for line in lacking(lines, home(lines))]


def worker_folder() -> Path:
    """Where the worker's packages lie once they are there; they stay for the next session. Raises `NotebookError`."""
    return _folder(every_line())


def _folder(lines: list[str]) -> Path:
    folder = home(lines)
    try:
        ready(folder, lines)
    except InstallError as error:
        raise NotebookError(f"what the worker needs could not be brought here: {error}") from error
    return folder


def _name(line: str) -> str:
    return re.split(r"[^\w.-]", line)[0]
