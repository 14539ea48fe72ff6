"""Probes of a machine's image, shared memory and staged files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from worker.agent.boot import find_files
from worker.doctor.outcome import ProbeError
from worker.shared.process import tied

VERSIONS = (
    "torch",
    "numpy",
    "transformers",
    "peft",
    "accelerate",
    "trl",
    "bitsandbytes",
    "torchao",
    "datasets",
    "pyarrow",
    "huggingface_hub",
    "hf-xet",
)
"""The packages in a report of an image."""


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that the image contained before the installation."""
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def image(environment: dict[str, str]) -> str:
    """The machine's image, named as in a session. Empty if a session could not name it either."""
    command = [sys.executable, "-c", "from worker.agent.hardware import image; print(image())"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(tied(command), env=environment, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip()
    return ""


def shared_memory_bytes(folder: str = "/dev/shm") -> int:  # noqa: S108  only its size is read
    """The size of `/dev/shm`. 0 if there is none."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0
    return found.f_blocks * found.f_frsize


def inputs(folder: Path, name: str, sha256: str) -> tuple[str, dict[str, Any]]:
    """Find the staged file `name` in `folder` as a session does. The reported layout contains no person's name."""
    path = find_files(folder, [name]).get(name)
    if path is not None:
        return _described(folder, path, sha256)
    raise ProbeError("the file that was staged as a private dataset is missing on the machine", found=False)


def _described(folder: Path, path: Path, sha256: str) -> tuple[str, dict[str, Any]]:
    parts = path.relative_to(folder).parts
    layout = "nested" if parts[0] == "datasets" else "flat" if len(parts) == 2 else "other"
    steps = [folder.joinpath(*parts[: n + 1]) for n in range(len(parts))]
    data: dict[str, Any] = {"found": True, "layout": layout, "link": any(step.is_symlink() for step in steps)}
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ProbeError("the file that was staged as a private dataset has different bytes on the machine", **data)
    through = ", reached through a link" if data["link"] else ""
    return f"the staged file was found in the {layout} layout{through}", data
