"""Starting a worker on a machine of which nothing is known: find its files, bring its packages, end it in time.

Standard library only. What the scripts that Kaggle and Colab run have in common; where the worker cannot begin, this says
why, to the server and in the session's log.
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

KILL_AFTER_S = 30.0
"""From being asked to stop to being ended."""
FOREIGN_SECRETS = ("KAGGLE_USER_SECRETS_TOKEN", "KAGGLE_API_V1_TOKEN", "KAGGLE_DATA_PROXY_TOKEN")
"""What Kaggle itself puts into a kernel's environment; training has no use for it."""
PIP = Limits()
MAX_SMOKE = Limits(whole_s=300.0)
ENDED_WELL = (0, 3)


class CannotStartError(Exception):
    """The worker cannot begin; the message is one sentence, `cause` one of `worker.shared.causes`."""

    def __init__(self, message: str, cause: str) -> None:
        super().__init__(message)
        self.cause = cause


class _AskedToEnd(Exception):
    """Somebody wants this session to end before its worker has begun."""


@dataclass(kw_only=True)
class Start:
    """One lease to work off in the folder `home`, out of the unpacked worker in `lib`.

    `began` is a monotonic time, `stop_after_s` counts from it. `write` takes a line of the session's log; with `relay` the
    worker's own output goes there too, line by line, instead of to this process's.
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
        """Seconds until the worker is asked to stop."""
        return max(1.0, self.stop_after_s - (time.monotonic() - self.began))

    def say(self, text: str) -> None:
        """A line for people."""
        self.write(f"trainhop: {text}")


def find_files(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Where files of these names lie, however deep, through links too; each folder is looked into once."""
    wanted, found, seen = set(names), dict[str, Path](), set[str]()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in wanted.intersection(files) - found.keys():
            found[name] = Path(here, name)
    return found


def place_inputs(assignment: dict[str, Any], names: dict[str, str], found: dict[str, Path]) -> list[str]:
    """Fill in where the files lie that came along, by grant key; returns the names of those that did not."""
    lost = []
    resume = [assignment["resume"]] if assignment.get("resume") else []
    for grant in [*assignment["datasets"], *resume, *assignment.get("model", ())]:
        if (name := names.get(grant["key"])) is None:
            continue
        if name in found:
            grant["path"] = str(found[name])
        else:
            lost.append(name)
    return lost


def work(start: Start, lost: list[str], place: str) -> tuple[int, str]:
    """Work off the lease; returns the worker's exit code and, where it could not begin, why.

    `lost` names files that `place` should have brought. What keeps the worker from beginning is said aloud here.
    """
    ending = _Ending()
    signal.signal(signal.SIGTERM, ending)
    try:
        if lost:
            raise CannotStartError(f"{place} did not bring {', '.join(lost)}: start the job again", causes.INPUT)
        folder = _bring_packages(start)
        code = _run_worker(start, _write_ticket(start), folder, ending)
        if code not in ENDED_WELL and not ending.asked and not _has_spoken(start):
            raise CannotStartError(
                f"the worker ended with exit code {code} before its first word: see the end of the session's log",
                causes.START,
            )
    except _AskedToEnd:
        return _say_why(start, "it was asked to end before its worker had begun", "", "drained")
    except CannotStartError as error:
        return _say_why(start, str(error), error.cause)
    except Exception as error:  # noqa: BLE001  whatever it is, the server and the owner are told
        return _say_why(start, *_own_error(error))
    return code, ""


def _say_why(start: Start, words: str, cause: str, reason: str = "unfit") -> tuple[int, str]:
    start.say(f"cannot start: {words}")
    said = early_release.release(start.ticket, words, cause=cause, reason=reason)
    early_release.say(start.ticket, said, start.write)
    return 2, words


def _own_error(error: Exception) -> tuple[str, str]:
    words, cause = why(str(error))
    return (words, cause) if cause == causes.DISK else (f"{type(error).__name__}: {error}", causes.START)


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
    """The ticket, less the time that getting here took."""
    ticket, spent = start.ticket, time.monotonic() - start.began
    ticket["budget_s"] -= spent
    if given := ticket.get("assignment"):
        given["seconds_left"] -= spent
    path = start.home / "ticket.json"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(ticket, file)
    return path


def environment(lib: Path, folder: Path) -> dict[str, str]:
    """What a worker finds in its environment."""
    ours = {
        "PYTHONPATH": package_folder.search_path([lib, folder], os.environ.get("PYTHONPATH", "")),
        "PYTHONUNBUFFERED": "1",
        "WORKER_MAY_INSTALL": "1",
        package_folder.FOLDER: str(folder),
    }
    return {name: value for name, value in os.environ.items() if name not in FOREIGN_SECRETS} | ours


class _Ending:
    """What a signal to end does: to the worker, or to what prepares its beginning."""

    def __init__(self) -> None:
        self.asked = False
        self._begun: subprocess.Popen[bytes] | None = None

    def __call__(self, *_: Any) -> None:
        self.asked = True
        if self._begun is None:
            raise _AskedToEnd
        self._begun.terminate()

    def begun(self, worker: subprocess.Popen[bytes]) -> None:
        self._begun = worker


def _run_worker(start: Start, ticket: Path, folder: Path, ending: _Ending) -> int:
    """The worker's exit code; it is asked to stop, and then made to, when the session's time is over."""
    pipe, merged = (subprocess.PIPE, subprocess.STDOUT) if start.relay else (None, None)
    worker = subprocess.Popen(
        [sys.executable, "-m", "worker", str(ticket)],
        cwd=start.home,
        env=environment(start.lib, folder),
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=merged,
    )
    ending.begun(worker)
    keeping = threading.Thread(target=_keep, args=(worker, start.relay), daemon=True)
    keeping.start()
    for patience_s, then in ((start.left_s, worker.terminate), (KILL_AFTER_S, worker.kill)):
        try:
            worker.wait(patience_s)
            break
        except subprocess.TimeoutExpired:
            start.say("the session's time is over: stopping the worker")
            ending.asked = True
            then()
    code = worker.wait()
    keeping.join(KILL_AFTER_S)
    return code


def _keep(worker: subprocess.Popen[bytes], relay: Callable[[bytes], None] | None) -> None:
    if relay is not None:
        for line in worker.stdout or ():
            relay(line)


def _has_spoken(start: Start) -> bool:
    return any(path.is_file() and path.stat().st_size for path in outboxes(start))


def outboxes(start: Start) -> list[Path]:
    """Where the worker may have written its messages down."""
    given = start.ticket.get("assignment") or {}
    kept_in = [Path(given["keep_dir"], "outbox.jsonl")] if given.get("keep_dir") else []
    return [*kept_in, start.home / "outbox.jsonl"]


def stage(requirements: list[str], lib: Path, home: Path, target: Path, say: Callable[[str], None]) -> int:
    """Make a packed set of packages for later sessions; the exit code is 0 if it trains on this machine's image."""
    folder = home / "packages"
    try:
        say(f"packages {package_folder.ready(folder, requirements)}")
        given = environment(lib, folder) | {"PYTHONDONTWRITEBYTECODE": ""}  # it is packed, too
        run([sys.executable, "-m", "worker.training.smoke"], MAX_SMOKE, environment=given)
        package_folder.pack(folder, target)
    except InstallError as error:
        say(f"cannot start: {error}")
    except OutOfTimeError as error:
        say(f"cannot start: the training libraries were tried and stopped because {error}")
    except subprocess.CalledProcessError as error:
        last = ((error.output or "").strip().splitlines() or ["no reason was given"])[-1]
        say(f"cannot start: {last}")
    except OSError as error:
        say(f"cannot start: {_own_error(error)[0]}")
    else:
        say(f"packed {target.stat().st_size:,} bytes")
        return 0
    return 2
