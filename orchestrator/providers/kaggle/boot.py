"""What a Kaggle kernel runs: unpack the worker, find its files, hand it its ticket, and end in time.

This text is the body of every pushed script (`source.py` puts the values in front), so it needs nothing but Python. A script
kernel starts in `/kaggle/working`, beside `input/`; data sets lie below that, nested in newer images and flat in older ones.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

BEGAN = time.monotonic()
KILL_AFTER_S = 30.0
"""From being asked to stop to being ended."""
FOREIGN_SECRETS = ("KAGGLE_USER_SECRETS_TOKEN", "KAGGLE_API_V1_TOKEN", "KAGGLE_DATA_PROXY_TOKEN")
"""What Kaggle itself puts into a kernel's environment; training has no use for it."""


def say(text: str) -> None:
    """One line of the session's log."""
    print(f"trainhop: {text}", flush=True)


def working_folder() -> Path:
    """Where Kaggle keeps what a kernel leaves."""
    here = Path.cwd()
    return here if (here.parent / "input").is_dir() else Path("/kaggle/working")


def install(requirements: list[str]) -> str:
    """Bring what lacks, with the unpacked worker's own installer; returns why pip could not, or nothing."""
    from worker.install import lacking, pip, why

    lines = lacking(requirements)
    if lines:
        say(f"installing {', '.join(lines)}")
    try:
        pip(lines)
    except subprocess.CalledProcessError as error:
        return why(error)
    return ""


def place_inputs(assignment: dict, files: dict, folder: Path) -> list[str]:
    """Fill in where the staged files lie; returns the names of those that are not there."""
    lacking = []
    resume = [assignment["resume"]] if assignment.get("resume") else []
    grants = [*assignment["datasets"], *assignment.get("model", ()), *resume]
    for grant in grants:
        if grant["key"] not in files:
            continue
        name = files[grant["key"]]
        found = next(folder.rglob(name), None)
        if found is None:
            lacking.append(name)
        else:
            grant["path"] = str(found)
    return lacking


def ticket_for(ticket: dict, home: Path) -> Path:
    """Write the ticket, less the time that getting here took."""
    spent = time.monotonic() - BEGAN
    ticket["budget_s"] -= spent
    if ticket.get("assignment"):
        ticket["assignment"]["seconds_left"] -= spent
    path = home / "ticket.json"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(ticket, file)
    return path


def run_worker(ticket: Path, home: Path, stop_after_s: float) -> int:
    """The worker's exit code; it is asked to stop, and then made to, before Kaggle would end the session."""
    environment = {k: v for k, v in os.environ.items() if k not in FOREIGN_SECRETS}
    environment |= {"PYTHONPATH": str(home / "lib"), "PYTHONUNBUFFERED": "1", "WORKER_MAY_INSTALL": "1"}
    worker = subprocess.Popen([sys.executable, "-m", "worker", str(ticket)], cwd=home, env=environment)
    signal.signal(signal.SIGTERM, lambda *_: worker.terminate())
    try:
        return worker.wait(max(1.0, stop_after_s - (time.monotonic() - BEGAN)))
    except subprocess.TimeoutExpired:
        say("the session's time is over: stopping the worker")
        worker.terminate()
    try:
        return worker.wait(KILL_AFTER_S)
    except subprocess.TimeoutExpired:
        worker.kill()
        return worker.wait()


def main(carried: dict, worker_zip: str) -> int:
    """Work off one lease; 0 when the worker said its last word, so that Kaggle keeps what it left."""
    working = working_folder()
    home = Path(tempfile.mkdtemp(prefix="trainhop-"))
    zipfile.ZipFile(io.BytesIO(base64.b64decode(worker_zip))).extractall(home / "lib")
    sys.path.insert(0, str(home / "lib"))
    ticket = carried["ticket"]
    assignment = ticket.get("assignment")
    if assignment:
        assignment["keep_dir"] = str(working)
        if lacking := place_inputs(assignment, carried["files"], working.parent / "input"):
            say(f"cannot start: Kaggle did not bring {', '.join(lacking)}")
            return 2
    if problem := install(carried["requirements"]):
        say(f"cannot start: what the worker needs could not be installed ({problem})")
        return 2
    code = run_worker(ticket_for(ticket, home), home, carried["stop_after_s"])
    outbox = home / "outbox.jsonl"
    if outbox.is_file() and not (working / outbox.name).exists():
        shutil.copyfile(outbox, working / outbox.name)
    say(f"the worker ended with exit code {code}")
    return 0 if code in (0, 3) else 1
