"""The start script in a Kaggle kernel: unpacks the worker, finds its files and runs the requested task.

`kernel.py` puts the values in front of this text to make a pushed script. Standard library only. A script kernel starts
in `/kaggle/working`, beside `input/`. Datasets are in `input/`, nested in newer images and flat in older ones.
"""

from __future__ import annotations

import base64
import bz2
import io
import json  # noqa: F401  `kernel.py` appends code that uses it
import os
import re
import shutil
import sys
import tempfile
import time
import zipfile
from pathlib import Path

BEGAN = time.monotonic()


def write(line: str) -> None:
    """Write one line of the session's log."""
    print(line, flush=True)


def say(text: str) -> None:
    """Write one line for people."""
    write(f"trainhop: {text}")


def name_session() -> None:
    """Print the session's number, which is needed to cancel it. The rest of the variable is a secret."""
    if found := re.search(r"-(\d+)-\w+$", os.environ.get("KAGGLE_CONTAINER_NAME", "")):
        say(f"kaggle session {found[1]}")


def working_folder() -> Path:
    """The folder from which Kaggle keeps a kernel's files."""
    here = Path.cwd()
    return here if (here.parent / "input").is_dir() else Path("/kaggle/working")


def session(carried: dict, home: Path) -> int:
    """Run one lease. Returns 0 if the worker has reported its end, so that Kaggle keeps its files."""
    from worker.agent import boot
    from worker.shared import package_folder

    working, ticket, lost = working_folder(), carried["ticket"], []
    names = carried["files"]
    found = boot.find_files(working.parent / "input", [*names.values(), package_folder.STAGED])
    if assignment := ticket.get("assignment"):
        assignment["keep_dir"] = str(working)
        lost = boot.place_inputs(assignment, names, found)
    start = boot.Start(
        ticket=ticket,
        requirements=carried["requirements"],
        stop_after_s=carried["stop_after_s"],
        home=home,
        lib=home / "lib",
        began=BEGAN,
        write=write,
        staged=found.get(package_folder.STAGED),
    )
    code, problem = boot.work(start, lost, "Kaggle")
    if problem:
        return code
    outbox = home / "outbox.jsonl"
    if outbox.is_file() and not (working / outbox.name).exists():
        shutil.copyfile(outbox, working / outbox.name)
    say(f"the worker ended with exit code {code}")
    return 0 if code in boot.ENDED_WELL else 1


def packages(carried: dict, home: Path) -> int:
    """Store the worker's packages as one file for later sessions."""
    from worker.agent import boot
    from worker.shared import package_folder

    return boot.stage(carried["requirements"], home / "lib", home, working_folder() / package_folder.STAGED, say)


def doctor(carried: dict, home: Path) -> int:
    """Run the probes of a check."""
    from worker.doctor.kernel import run

    return run(carried, working_folder(), home)


TASKS = {"session": session, "packages": packages, "doctor": doctor}


def main(carried: dict, packed_worker: str) -> int:
    """Run the script's task. Returns the kernel's exit code."""
    name_session()
    home = Path(tempfile.mkdtemp(prefix="trainhop-"))
    worker = bz2.decompress(base64.b85decode("".join(packed_worker.split())))
    zipfile.ZipFile(io.BytesIO(worker)).extractall(home / "lib")
    sys.path.insert(0, str(home / "lib"))
    return TASKS[carried.get("task", "session")](carried, home)
