"""Whether a Python can run workers, and the installation of the packages that it lacks into a folder of our own.

`main` runs in the Python of the workers, which may be another one than the agent's. So everything here needs the
standard library only. The person's environment is not changed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import worker
from worker.joined.membership import MachineError
from worker.shared.package_folder import home, ready
from worker.shared.packages import InstallError, every_line, installed, lacking
from worker.shared.process import last_line, tied

LEAST = (3, 11)
CHECK_S = 60.0
_CODE = """\
import sys
sys.path.insert(0, sys.argv[1])
from worker.joined import prepare
sys.path.remove(sys.argv[1])  # the packages there may be of another Python
prepare.main()
"""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A Python that can run workers: its version, its torch, and the folder of the packages that it lacks."""

    python: str
    torch: str
    folder: str = ""
    lacking: tuple[str, ...] = ()


def check(python: str) -> Prepared:
    """Whether this Python can run workers. Nothing is installed. Raises `MachineError`."""
    asked = "import sys; print('{}.{}.{}'.format(*sys.version_info))"
    try:
        done = subprocess.run(tied([python, "-c", asked]), capture_output=True, text=True, timeout=CHECK_S, check=True)
        found = done.stdout.strip()
        version = tuple(int(part) for part in found.split("."))
    except (OSError, subprocess.SubprocessError, ValueError):
        raise MachineError(f"{python} is not a Python. Give the path of one with --python.") from None
    if version < LEAST:
        raise MachineError(
            f"{python} is Python {found}, but workers need Python 3.11 or newer. Give the path of another one with "
            "--python."
        )
    return _run(python, install=False)


def install(python: str) -> Prepared:
    """Install what this Python lacks into a folder of our own. Takes minutes. Raises `MachineError`."""
    return _run(python, install=True)


def _run(python: str, *, install: bool) -> Prepared:
    package, lines = str(Path(worker.__file__).parents[1]), json.dumps(every_line())
    done = subprocess.run(
        tied([python, "-c", _CODE, package, lines, *(["--install"] if install else [])]),
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        said: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise MachineError(f"{python} cannot run workers: {last_line(done.stderr)}") from None
    if problem := said.get("problem"):
        raise MachineError(str(problem))
    return Prepared(**{**said, "lacking": tuple(said["lacking"])})


def main() -> None:
    """Print what this Python has, or why it cannot run workers."""
    lines, version = json.loads(sys.argv[2]), "{}.{}.{}".format(*sys.version_info)
    if find_spec("torch") is None:
        where = f"{sys.executable} (Python {version})"
        print(json.dumps({"problem": f"{where} has no torch. Install it there, or give another Python with --python."}))
        return
    missing = lacking(lines)
    folder = home(lines) if missing else None
    found = Prepared(
        python=version,
        torch=installed("torch") or "",
        folder=str(folder or ""),
        lacking=tuple(lacking(lines, folder)) if folder is not None else (),
    )
    if folder is not None and found.lacking and "--install" in sys.argv:
        try:
            ready(folder, lines)
        except InstallError as error:
            print(json.dumps({"problem": f"The worker's packages could not be installed: {error}"}))
            return
    print(json.dumps(vars(found)))
