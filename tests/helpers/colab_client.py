"""An environment for Colab's official client and the emulator's Jupyter servers: Python 3.12 or newer, apart from
ours."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.images import FOLDER

PACKAGES = ("google-colab-cli>=0.7.5,<0.8", "jupyter_server>=2,<3")
OLDEST = (3, 12)
PIP_S = 240.0


class MissingError(Exception):
    """Why there is no such environment."""


def environment(problems: Path) -> str:
    """The environment's Python; made once, also for several processes at a time. Raises `MissingError`.

    It lies beside the images and stays there for the next tests. A problem stays in the folder `problems`, so that one
    run of the tests tries only once. `TRAINHOP_TEST_COLAB_PYTHON` names an environment that is there already.
    """
    if given := os.environ.get("TRAINHOP_TEST_COLAB_PYTHON"):
        return given
    base = next((p for p in _candidates() if _is_new(p)), None)
    if base is None:
        raise MissingError("Colab's client needs Python 3.12 or newer, and none is here")
    target = FOLDER / f"colab-client-{hashlib.sha256(repr([base, PACKAGES]).encode()).hexdigest()[:12]}"
    FOLDER.mkdir(exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        failed = problems / "colab.failed"
        if not target.exists() and not failed.exists() and (problem := _make(base, target)):
            failed.write_text(problem)
        if not target.exists():
            raise MissingError(failed.read_text())
    return str(target / "bin" / "python")


def _make(base: str, target: Path) -> str:
    """Make it; returns why that did not work, or nothing.

    Little of the packages is imported, so they are not compiled in advance.
    """
    unfinished = target.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    pip = [str(unfinished / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        subprocess.run([base, "-m", "venv", str(unfinished)], check=True, capture_output=True, timeout=PIP_S)
        install = [*pip, "--no-compile", "--retries", "1", *PACKAGES]
        subprocess.run(install, check=True, capture_output=True, timeout=PIP_S)
    except (OSError, subprocess.SubprocessError) as error:
        return f"Colab's client cannot be installed here ({type(error).__name__})"
    unfinished.rename(target)
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
