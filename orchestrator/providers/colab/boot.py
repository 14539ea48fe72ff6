"""What a Colab machine runs beside its kernel: unpack the worker, start it, write its output down in pieces, end in time.

Needs nothing but Python. It lies in a folder with `plan.json` and the files that the plan names, and says in `ended.json` how the
worker ended. Its output is written to `log.00000` and so on, each of a size that one request can fetch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import BinaryIO

SEGMENT_BYTES = 64 << 10
KILL_AFTER_S = 30.0


class Log:
    """The session's output, in segments that only grow and are finished before the next one begins."""

    def __init__(self) -> None:
        self._number = 0
        self._file = self._open()

    def _open(self) -> BinaryIO:
        return Path(f"log.{self._number:05d}").open("ab", buffering=0)

    def write(self, line: bytes) -> None:
        """One more line."""
        if self._file.tell() >= SEGMENT_BYTES:
            self._file.close()
            self._number += 1
            self._file = self._open()
        self._file.write(line)

    def say(self, text: str) -> None:
        """A line of this script's own."""
        self.write(f"trainhop: {text}\n".encode())


def install(requirements: list[str], log: Log) -> str:
    """Bring what lacks, with the unpacked worker's own installer; returns why pip could not, or nothing."""
    from worker.install import lacking, pip, why

    lines = lacking(requirements)
    if lines:
        log.say(f"installing {', '.join(lines)}")
    try:
        pip(lines)
    except subprocess.CalledProcessError as error:
        return why(error)
    return ""


def write_ticket(plan: dict, began: float) -> None:
    """The worker's ticket, less the time that getting here took; every file is where it was unpacked."""
    ticket, spent = plan["ticket"], time.monotonic() - began
    ticket["budget_s"] -= spent
    if given := ticket.get("assignment"):
        given["seconds_left"] -= spent
        given["keep_dir"] = str(Path("keep").resolve())
        read = [*given["datasets"], *given.get("model", ()), *([given["resume"]] if given.get("resume") else [])]
        for grant in read:
            if name := plan["files"].get(grant["key"]):
                grant["path"] = str(Path(name).resolve())
    with os.fdopen(os.open("ticket.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(ticket, file)


def run_worker(log: Log, stop_after_s: float) -> int:
    """The worker's exit code; it is asked to stop, and then made to, when the session's time is over."""
    ours = {"PYTHONPATH": str(Path("lib").resolve()), "PYTHONUNBUFFERED": "1", "WORKER_MAY_INSTALL": "1"}
    environment = os.environ | ours
    worker = subprocess.Popen(
        [sys.executable, "-m", "worker", "ticket.json"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )

    def keep() -> None:
        for line in worker.stdout or ():
            log.write(line)

    keeping = threading.Thread(target=keep)
    keeping.start()
    for patience_s, then in ((stop_after_s, worker.terminate), (KILL_AFTER_S, worker.kill)):
        try:
            worker.wait(max(1.0, patience_s))
            break
        except subprocess.TimeoutExpired:
            log.say("the session's time is over: stopping the worker")
            then()
    code = worker.wait()
    keeping.join(KILL_AFTER_S)
    return code


def work(log: Log, began: float) -> tuple[int, str]:
    """Work off one lease; returns the worker's exit code and, where it could not start, why."""
    plan = json.loads(Path("plan.json").read_text())
    zipfile.ZipFile("worker.whl").extractall("lib")
    sys.path.insert(0, str(Path("lib").resolve()))
    if problem := install(plan["requirements"], log):
        return 2, f"what the worker needs could not be installed ({problem})"
    Path("keep").mkdir(exist_ok=True)
    write_ticket(plan, began)
    code = run_worker(log, plan["stop_after_s"] - (time.monotonic() - began))
    for outbox in (Path("keep", "outbox.jsonl"), Path("outbox.jsonl")):
        if outbox.is_file():
            outbox.replace("outbox.jsonl")
            break
    return code, ""


def main() -> None:
    """Say how it ended, whatever happened."""
    began, log = time.monotonic(), Log()
    code, problem = 2, "the worker could not be started"
    try:
        code, problem = work(log, began)
    finally:
        if problem:
            log.say(problem)
        Path(".ended").write_text(json.dumps({"code": code, "problem": problem}))
        Path(".ended").replace("ended.json")


if __name__ == "__main__":
    main()
