"""What a Kaggle kernel runs: unpack the worker, find its files, and do what the script was pushed for.

This text is the body of every pushed script (`source.py` puts the values in front), so it needs nothing but Python. A script
kernel starts in `/kaggle/working`, beside `input/`; data sets lie below that, nested in newer images and flat in older ones.
"""

from __future__ import annotations

import base64
import io
import json  # noqa: F401  what `source.py` puts behind this text reads with it
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
    """One line of the session's log."""
    print(line, flush=True)


def say(text: str) -> None:
    """The same, for people."""
    write(f"trainhop: {text}")


def name_session() -> None:
    """The number by which Kaggle can be asked to end this session; the rest of the variable is a secret."""
    if found := re.search(r"-(\d+)-\w+$", os.environ.get("KAGGLE_CONTAINER_NAME", "")):
        say(f"kaggle session {found[1]}")


def working_folder() -> Path:
    """Where Kaggle keeps what a kernel leaves."""
    here = Path.cwd()
    return here if (here.parent / "input").is_dir() else Path("/kaggle/working")


def session(carried: dict, home: Path) -> int:
    """Work off one lease; 0 when the worker said its last word, so that Kaggle keeps what it left."""
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
    """Leave the worker's packages as one file for later sessions."""
    from worker.agent import boot
    from worker.shared import package_folder

    return boot.stage(carried["requirements"], home / "lib", home, working_folder() / package_folder.STAGED, say)


def doctor(carried: dict, home: Path) -> int:
    """Answer the probes of a check."""
    from worker.doctor.kernel import run

    return run(carried, working_folder(), home)


TASKS = {"session": session, "packages": packages, "doctor": doctor}


def main(carried: dict, worker_zip: str) -> int:
    """Do what the script was pushed for; returns the kernel's exit code."""
    name_session()
    home = Path(tempfile.mkdtemp(prefix="trainhop-"))
    zipfile.ZipFile(io.BytesIO(base64.b64decode(worker_zip))).extractall(home / "lib")
    sys.path.insert(0, str(home / "lib"))
    return TASKS[carried.get("task", "session")](carried, home)
