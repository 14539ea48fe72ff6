"""Packages that the cell or the worker needs and the kernel lacks, in our own folders.

The person's environment is not changed.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from worker.notebook.errors import NotebookError
from worker.shared.package_folder import home, ready
from worker.shared.packages import InstallError, every_line, installed, lacking
from worker.shared.wheel import requirements

CELL = ("httpx", "pydantic")
"""What the cell itself imports. The worker process needs more."""


@contextlib.contextmanager
def borrowed(wanted: Sequence[str] | None = None) -> Iterator[None]:
    """Inside the block the cell can import what it needs. Nothing happens for packages that the kernel has.

    `wanted` are requirements in pip's syntax, by default those of `CELL`. Added packages come last on the kernel's
    path, so that they never replace the person's own. Raises `NotebookError`.
    """
    ours = (line for line in requirements() if _name(line) in CELL)
    lines = lacking(ours if wanted is None else wanted)
    if old := [line for line in lines if installed(_name(line))]:
        named = ", ".join(f"{_name(line)} {installed(_name(line))}" for line in old)
        raise NotebookError(
            f"This kernel's {named} is too old. Run `pip install -U {' '.join(map(_name, old))}`, "
            "restart the kernel, and "
            "run this cell again."
        )
    if not lines:
        yield
        return
    folder, inherited = str(_folder(lines)), os.environ.get("PYTHONPATH")
    sys.path.append(folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [inherited, folder]))  # for child processes of the cell

    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(folder)
        os.environ.pop("PYTHONPATH") if inherited is None else os.environ.update(PYTHONPATH=inherited)


def needed(wanted: list[str] | None = None) -> list[str]:
    """Names of the packages that the worker lacks on this machine, and that no earlier session has installed.

    `wanted` are requirements in pip's syntax, by default the worker's.
    """
    lines = every_line() if wanted is None else wanted
    return [_name(line) for line in lacking(lines, home(lines))]


def worker_folder(wanted: list[str] | None = None) -> Path:
    """The folder of the worker's packages after they are installed. They stay for the next session.

    `wanted` are requirements in pip's syntax, by default the worker's. Raises `NotebookError`.
    """
    return _folder(every_line() if wanted is None else wanted)


def _folder(lines: list[str]) -> Path:
    folder = home(lines)
    try:
        ready(folder, lines)
    except InstallError as error:
        raise NotebookError(f"The worker's packages could not be installed: {error}") from error
    return folder


def _name(line: str) -> str:
    return re.split(r"[^\w.-]", line)[0]
