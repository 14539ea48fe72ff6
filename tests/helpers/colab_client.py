"""An environment for Colab's official client and the emulator's Jupyter servers: Python 3.12 or newer, apart from
ours."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = ("google-colab-cli>=0.7.5,<0.8", "jupyter_server>=2,<3")
OLDEST = (3, 12)
PIP_S = 240.0


class MissingError(Exception):
    """Why there is no such environment."""


def environment(folder: Path) -> str:
    """The environment's Python; made once per folder, also for several processes at a time. Raises `MissingError`.

    `TRAINHOP_TEST_COLAB_PYTHON` names one that is there already.
    """
    if given := os.environ.get("TRAINHOP_TEST_COLAB_PYTHON"):
        return given
    python, done = folder / "colab" / "bin" / "python", folder / "colab.done"
    with (folder / "colab.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            done.write_text(_make(folder / "colab"))
        if problem := done.read_text():
            raise MissingError(problem)
    return str(python)


def _make(target: Path) -> str:
    """Make it; returns why that did not work, or nothing."""
    base = next((p for p in _candidates() if _is_new(p)), None)
    if base is None:
        return "Colab's client needs Python 3.12 or newer, and none is here"
    install = [
        str(target / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--retries",
        "1",
        *PACKAGES,
    ]
    try:
        subprocess.run([base, "-m", "venv", str(target)], check=True, capture_output=True, timeout=PIP_S)
        subprocess.run(install, check=True, capture_output=True, timeout=PIP_S)
    except (OSError, subprocess.SubprocessError) as error:
        return f"Colab's client cannot be installed here ({type(error).__name__})"
    return ""


def _candidates() -> list[str]:
    found = [shutil.which(f"python3.{minor}") for minor in (12, 13, 14)]
    pyenv = sorted((Path.home() / ".pyenv" / "versions").glob("3.1[2-9]*/bin/python"))
    return [sys.executable, *filter(None, found), *map(str, pyenv)]


def _is_new(python: str) -> bool:
    asked = [python, "-c", f"import sys, venv, ensurepip; sys.exit(sys.version_info < {OLDEST})"]
    try:
        return subprocess.run(asked, capture_output=True, timeout=30, check=False).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False
