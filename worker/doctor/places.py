"""Probes of what a machine is and what lies on it: its image, its shared memory, the files that were brought."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from worker.agent.boot import find_files
from worker.doctor.outcome import ProbeError

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
"""What is named in a report of an image."""
_SESSION = re.compile(r"-(\d+)-\w+$")


def versions() -> dict[str, str]:
    """Python, and the packages that the image brought before anything was installed."""
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def image(environment: dict[str, str]) -> str:
    """Which image this machine runs, in the words of a session; empty if a session could not tell it either."""
    command = [sys.executable, "-c", "from worker.agent.hardware import image; print(image())"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip()
    return ""


def session_id() -> int | None:
    """The number of this Kaggle session by which it can be cancelled, from the name of its container."""
    found = _SESSION.search(os.environ.get("KAGGLE_CONTAINER_NAME", ""))
    return int(found[1]) if found else None


def shared_memory_bytes(folder: str = "/dev/shm") -> int:  # noqa: S108  its size is asked for
    """How large `/dev/shm` is; 0 where there is none."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0
    return found.f_blocks * found.f_frsize


def inputs(folder: Path, name: str, sha256: str) -> tuple[str, dict[str, Any]]:
    """Find the staged file `name` below `folder` as a session does; tells how it lies there without anybody's name."""
    path = find_files(folder, [name]).get(name)
    if path is not None:
        return _described(folder, path, sha256)
    raise ProbeError("the file that was brought as a private dataset is not on the machine", found=False)


def _described(folder: Path, path: Path, sha256: str) -> tuple[str, dict[str, Any]]:
    parts = path.relative_to(folder).parts
    layout = "nested" if parts[0] == "datasets" else "flat" if len(parts) == 2 else "other"
    steps = [folder.joinpath(*parts[: n + 1]) for n in range(len(parts))]
    data: dict[str, Any] = {"found": True, "layout": layout, "link": any(step.is_symlink() for step in steps)}
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ProbeError("the file that was brought as a private dataset has other bytes on the machine", **data)
    through = ", reached through a link" if data["link"] else ""
    return f"the staged file is there, in the {layout} layout{through}", data
