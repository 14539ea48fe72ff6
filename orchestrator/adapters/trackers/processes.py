"""Runs the writers: one process for one write, with a time limit, so that no library can hold the server up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from orchestrator.adapters.trackers import child
from orchestrator.domain.tracking import Point, TrackerLogin
from orchestrator.ports.tracking import RunRequest, TrackerError
from worker.shared.files import temporary_folder
from worker.shared.process import NETWORK_VARIABLES, tied, variables

MAX_WRITE_S = 180.0
"""For one write, from the start of the process to its end."""
LOOK_S = 30.0
"""For finding out what is installed."""
MAX_LINE = 1 << 20
KEPT = "tensorboard"
"""The folder of the data folder with the files of the trackers that have no server."""
WORK = "trackers"
_PACKAGE = "orchestrator.adapters.trackers"
_FIND = "import importlib.util as u, sys; sys.exit(u.find_spec(sys.argv[1]) is None)"
_MISSING = 1


class ProcessTrackers:
    """Implements `ports.tracking.Trackers`. `python` has the libraries. It is the server's own one unless set."""

    def __init__(self, folder: Path, *, python: Path | None = None, longest_s: float = MAX_WRITE_S) -> None:
        self._folder, self._longest_s = folder, longest_s
        self._python = str(python or sys.executable)
        self._installed: set[str] = set()

    def fault(self, tracker: str, login: TrackerLogin | None) -> str:
        module = import_module(f"{_PACKAGE}.{tracker}")
        if words := self._missing(tracker, module.LIBRARY):
            return words
        return module.login_fault(login)

    def _missing(self, tracker: str, library: str) -> str:
        if not library or library in self._installed:
            return ""
        if self._python == sys.executable and find_spec(library) is not None:
            return ""
        try:
            found = subprocess.run([self._python, "-c", _FIND, library], env=variables(), timeout=LOOK_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"The Python for trackers ({self._python}) does not start: {error}. Ask an admin."
        if found.returncode == _MISSING:
            return (
                f"{library} is not installed on this server. Ask an admin to run: pip install 'trainhop[{tracker}]', "
                "or to set TRAINHOP_TRACKERS_PYTHON."
            )
        self._installed.add(library)
        return ""

    def file_of(self, run_id: str) -> Path | None:
        """The event file of a job's run at TensorBoard, if there is one."""
        return next(iter(sorted((self._folder / KEPT / run_id).glob("*tfevents*"))), None)

    def remove_unfinished(self) -> None:
        """Delete the working files of writers that were at work when a server was killed."""
        shutil.rmtree(self._folder / WORK, ignore_errors=True)

    def forget(self, run_id: str) -> None:
        shutil.rmtree(self._folder / KEPT / run_id, ignore_errors=True)

    @contextmanager
    def open(self, request: RunRequest) -> Generator[_OpenRun]:
        work = self._folder / WORK
        work.mkdir(mode=0o700, exist_ok=True)
        with temporary_folder("write-", work) as temporary:
            kept = self._folder / KEPT / request.run_id if request.tracker == KEPT else temporary
            command = (self._python, "-W", "ignore", child.__file__, request.tracker)
            # A home of its own, because libraries would read this user's tokens there.
            environment = variables(*NETWORK_VARIABLES) | {"HOME": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"}
            with _process(command, environment, temporary, self._longest_s) as talk:
                login = request.login
                run: dict[str, Any] = {
                    "id": request.run_id,
                    "name": request.name,
                    "url": login.url,
                    "key": login.key,
                    "project": login.project,
                    "config": request.config,
                    "notes": request.notes,
                    "created_at": request.created_at,
                    "folder": str(kept),
                }
                found = talk.ask({"run": run, "anywhere": login.is_trusted or not login.url})
                yield _OpenRun(last_step=int(found["last"]), talk=talk)


@dataclass
class _Talk:
    """The two lines to a writer and its answers."""

    process: subprocess.Popen[str]
    is_late: threading.Event

    def ask(self, line: Mapping[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(OSError):  # it has ended, which its answer says
            self.process.stdin.write(json.dumps(line) + "\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline(MAX_LINE)
        if self.is_late.is_set():
            raise TrackerError("The tracker did not answer in time.")
        try:
            found = json.loads(answer)
        except ValueError:
            raise TrackerError("The process that writes to the tracker ended without an answer.") from None
        if "error" in found:
            raise TrackerError(f"The tracker did not take it: {found['error']}")
        return found


@dataclass(frozen=True)
class _OpenRun:
    last_step: int
    talk: _Talk

    def write(self, points: Sequence[Point], state: str) -> str:
        found = self.talk.ask({"points": [(p.step, p.at, p.values) for p in points], "state": state})
        return str(found["url"])[:2_000]


@contextmanager
def _process(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, longest_s: float
) -> Generator[_Talk]:
    """A writer in a process group of its own, which ends with the block, with its time, or with this process."""
    with subprocess.Popen(
        tied(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=folder,
        env=dict(environment),
        start_new_session=True,
    ) as process:
        is_late = threading.Event()
        timer = threading.Timer(longest_s, partial(_end_late, process.pid, is_late))
        timer.daemon = True
        timer.start()
        try:
            yield _Talk(process, is_late)
        finally:
            timer.cancel()
            _kill(process.pid)


def _end_late(pid: int, is_late: threading.Event) -> None:
    is_late.set()
    _kill(pid)


def _kill(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
