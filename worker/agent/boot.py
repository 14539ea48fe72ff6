"""Starts a worker on an unknown machine: finds its files, installs its packages, ends it in time.

Standard library only. The start scripts of all providers share this code. If the worker cannot start, the reason is
sent to the server and written to the session's log.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.agent import early_release
from worker.shared import causes, package_folder
from worker.shared.bounded_process import Limits, OutOfTimeError, run
from worker.shared.packages import InstallError, lacking
from worker.shared.pip_words import why
from worker.shared.places import FOREIGN_SECRETS
from worker.shared.process import last_line, postponed

KILL_AFTER_S = 30.0
"""Seconds between the request to stop and the kill."""
PIP = Limits()
MAX_SMOKE = Limits(whole_s=300.0)
ENDED_WELL = (0, 3)


class CannotStartError(Exception):
    """The worker cannot start. The message is one sentence that says what to do.

    `cause` is one of `worker.shared.causes`.
    """

    def __init__(self, message: str, cause: str) -> None:
        super().__init__(message)
        self.cause = cause


class _StopRequested(Exception):
    """The session received a stop request before its worker started."""


@dataclass(kw_only=True)
class Start:
    """One lease to run in the folder `home`, with the unpacked worker in `lib`.

    `began` is a monotonic time, and `stop_after_s` counts from it. `write` takes one line of the session's log. If
    `relay` is set, it receives the worker's own output line by line. Otherwise that output goes to the output of this
    process.
    """

    ticket: dict[str, Any]
    requirements: list[str]
    stop_after_s: float
    home: Path
    lib: Path
    began: float
    write: Callable[[str], None]
    relay: Callable[[bytes], None] | None = None
    staged: Path | None = None
    limits: Limits = PIP

    @property
    def left_s(self) -> float:
        """Seconds until the worker gets the stop request, at least 1."""
        return max(1.0, self.stop_after_s - (time.monotonic() - self.began))

    def say(self, text: str) -> None:
        """Write a line for people to the session's log."""
        self.write(f"trainhop: {text}")


def find_files(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Find files with these names below `folder`, at any depth and through links. Each folder is visited once."""
    wanted, paths, seen = set(names), dict[str, Path](), set[str]()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in wanted.intersection(files) - paths.keys():
            paths[name] = Path(here, name)
    return paths


def place_inputs(assignment: dict[str, Any], names: dict[str, str], paths: dict[str, Path]) -> list[str]:
    """Set the path of each staged input in the assignment.

    `names` maps a grant's key to the name of its staged file, and `paths` maps that name to its path. Returns the names
    of the files that are missing.
    """
    missing = []
    resume = [assignment["resume"]] if assignment.get("resume") else []
    for grant in [*assignment["datasets"], *resume, *assignment.get("model", ()), *assignment.get("judge", ())]:
        if (name := names.get(grant["key"])) is None:
            continue
        if name in paths:
            grant["path"] = str(paths[name])
        else:
            missing.append(name)
    return missing


def work(start: Start, missing: list[str], place: str) -> tuple[int, str]:
    """Run the lease. Returns the worker's exit code, and the reason if it could not start.

    `missing` names files that `place` should have provided. A reason not to start is written to the log and sent to the
    server.
    """
    stop_handler = _StopHandler()
    signal.signal(signal.SIGTERM, stop_handler)
    try:
        if missing:
            raise CannotStartError(
                f"{place} did not provide {', '.join(missing)}, which was staged for this session; "
                "retry the job later, or run it on another account",
                causes.INPUT,
            )
        folder = _bring_packages(start)
        code = _run_worker(start, _write_ticket(start), folder, stop_handler)
        if code not in ENDED_WELL and not stop_handler.stop_requested and not _has_messages(start):
            raise CannotStartError(
                f"the worker ended with exit code {code} before its first message; see the end of the session's log",
                causes.START,
            )
    except _StopRequested:
        return _report_failure(start, "it was stopped before its worker had started", "", reason="drained")
    except CannotStartError as error:
        return _report_failure(start, str(error), error.cause, has_remedy=True)
    except Exception as error:  # noqa: BLE001  any error is reported to the server and the owner
        problem, cause = _describe_error(error)
        return _report_failure(start, problem, cause, has_remedy=cause == causes.DISK)
    return code, ""


def _report_failure(
    start: Start, problem: str, cause: str, *, reason: str = "unfit", has_remedy: bool = False
) -> tuple[int, str]:
    start.say(f"cannot start: {problem}")
    message = early_release.release(start.ticket, problem, cause=cause, reason=reason, has_remedy=has_remedy)
    early_release.send(start.ticket, message, start.write)
    return 2, problem


def _describe_error(error: Exception) -> tuple[str, str]:
    problem, cause = why(str(error))
    return (problem, cause) if cause == causes.DISK else (f"{type(error).__name__}: {error}", causes.START)


def _bring_packages(start: Start) -> Path:
    folder, lines = start.home / "packages", lacking(start.requirements)
    if lines:
        start.say(f"bringing {', '.join(lines)}")
    limits = Limits(
        stall_s=start.limits.stall_s,
        whole_s=min(start.limits.whole_s, start.left_s),
        look_every_s=start.limits.look_every_s,
    )
    began = time.monotonic()
    try:
        how = package_folder.ready(folder, start.requirements, staged=start.staged, limits=limits)
    except InstallError as error:
        raise CannotStartError(f"the packages could not be installed: {error}", error.cause) from error
    if lines:
        start.say(f"packages {how} after {time.monotonic() - began:.1f} s")
    return folder


def _write_ticket(start: Start) -> Path:
    """Write the ticket with the time spent so far deducted from its budget."""
    ticket, spent = start.ticket, time.monotonic() - start.began
    ticket["budget_s"] -= spent
    if assignment := ticket.get("assignment"):
        assignment["seconds_left"] -= spent
    path = start.home / "ticket.json"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(ticket, file)
    return path


def environment(lib: Path, folder: Path) -> dict[str, str]:
    """The environment variables of the worker process."""
    variables = {
        "PYTHONPATH": package_folder.search_path([lib, folder], os.environ.get("PYTHONPATH", "")),
        "PYTHONUNBUFFERED": "1",
        "WORKER_MAY_INSTALL": "1",
        package_folder.FOLDER: str(folder),
    }
    return {name: value for name, value in os.environ.items() if name not in FOREIGN_SECRETS} | variables


class _StopHandler:
    """Signal handler: stops the worker, or the preparation if the worker has not started yet."""

    def __init__(self) -> None:
        self.stop_requested = False
        self._begun: subprocess.Popen[bytes] | None = None

    def __call__(self, *_: Any) -> None:
        self.stop_requested = True
        if self._begun is None:
            raise _StopRequested
        self._begun.terminate()

    def attach(self, worker: subprocess.Popen[bytes]) -> None:
        self._begun = worker


def _run_worker(start: Start, ticket: Path, folder: Path, stop_handler: _StopHandler) -> int:
    """The worker's exit code.

    When the session's time is over, the worker is terminated, and killed if it does not stop.
    """
    pipe, merged = (subprocess.PIPE, subprocess.STDOUT) if start.relay else (None, None)
    with postponed(signal.SIGTERM):
        worker = subprocess.Popen(
            [sys.executable, "-m", "worker", str(ticket)],
            cwd=start.home,
            env=environment(start.lib, folder),
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=merged,
        )
        stop_handler.attach(worker)
    copying = threading.Thread(target=_copy_output, args=(worker, start.relay), daemon=True)
    copying.start()
    for patience_s, then in ((start.left_s, worker.terminate), (KILL_AFTER_S, worker.kill)):
        try:
            worker.wait(patience_s)
            break
        except subprocess.TimeoutExpired:
            start.say("the session's time limit is reached: stopping the worker")
            stop_handler.stop_requested = True
            then()
    code = worker.wait()
    copying.join(KILL_AFTER_S)
    return code


def _copy_output(worker: subprocess.Popen[bytes], relay: Callable[[bytes], None] | None) -> None:
    if relay is not None:
        for line in worker.stdout or ():
            relay(line)


def _has_messages(start: Start) -> bool:
    return any(path.is_file() and path.stat().st_size for path in outboxes(start))


def outboxes(start: Start) -> list[Path]:
    """The files in which the worker may have stored its messages."""
    assignment = start.ticket.get("assignment") or {}
    kept_in = [Path(assignment["keep_dir"], "outbox.jsonl")] if assignment.get("keep_dir") else []
    return [*kept_in, start.home / "outbox.jsonl"]


def stage(requirements: list[str], lib: Path, home: Path, target: Path, say: Callable[[str], None]) -> int:
    """Install the packages, run the smoke step and pack them for later sessions.

    Returns exit code 0 if the packages train on this machine's image, else 2.
    """
    folder = home / "packages"
    try:
        say(f"packages {package_folder.ready(folder, requirements)}")
        variables = environment(lib, folder) | {"PYTHONDONTWRITEBYTECODE": ""}  # it is packed, too

        run([sys.executable, "-m", "worker.training.smoke"], MAX_SMOKE, environment=variables)
        package_folder.pack(folder, target)
    except InstallError as error:
        say(f"cannot start: {error}")
    except OutOfTimeError as error:
        say(f"cannot start: the test of the training libraries was stopped because {error}")
    except subprocess.CalledProcessError as error:
        say(f"cannot start: {last_line(error.output or '')}")
    except OSError as error:
        say(f"cannot start: {_describe_error(error)[0]}")
    else:
        say(f"packed {target.stat().st_size:,} bytes")
        return 0
    return 2
