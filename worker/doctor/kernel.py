"""The program of a check's kernels, by `role`: `main` runs the probes, `limit` and `cancel` wait for their end.

`limit` waits for the time limit, `cancel` to be cancelled. All output is signed lines with a `kind`: `began`, `stamp`
(one a second), `signal`, `outcome` (a probe has ended) and `answer` with the whole result. Output after the answer only
fills the log.
"""

from __future__ import annotations

import itertools
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from worker.agent import boot
from worker.doctor import outcome
from worker.doctor.hub import hub
from worker.doctor.outcome import Outcome, ProbeError, attempt, not_asked, say
from worker.doctor.places import image, inputs, versions
from worker.doctor.reduce import all_reduce
from worker.doctor.training import equal_bytes, training
from worker.doctor.uploads import uploads
from worker.shared import package_folder
from worker.shared.packages import InstallError
from worker.shared.places import session_number

KEPT_FILE = "trainhop-check.txt"
LIVES_OVER_S = 300.0
"""How long a kernel waits beyond its time limit. After that the provider has not enforced the limit."""
LEAST_STAMPS = 5
FLOOD_LINE = "trainhop: this line only fills the log "
_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
)
_ELSEWHERE = (outcome.TIME_LIMIT, outcome.CANCEL, outcome.LOG)
"""Probes that the server makes, with this kernel and others."""
Probe = Callable[[], tuple[str, dict[str, Any]]]


def run(carried: Mapping[str, Any], working: Path, home: Path) -> int:
    """Run the role of the pushed script. Returns the exit code. This package was unpacked into `home / "lib"`."""
    token, order = carried["token"], carried["order"]
    say(token, "began", at=time.time(), session=session_number(), versions=versions())
    if carried["role"] != "main":
        return _wait_for_the_end(token, order, working)
    over = threading.Event()
    stamping = threading.Thread(target=_stamp, args=(token, float(order["stamp_every_s"]), over), daemon=True)
    stamping.start()
    outcomes = _probe(carried, working, home)
    over.set()
    stamping.join()
    found_on = image(boot.environment(home / "lib", home / "packages"))
    answer = {"check": carried["check"], "image": found_on, "versions": versions()}
    say(token, "answer", **answer, probes=[each.as_dict() for each in outcomes])
    _flood(int(order["flood_bytes"]))
    return 0


def _stamp(token: str, every_s: float, over: threading.Event) -> None:
    for number in itertools.count():
        if over.is_set() and number >= LEAST_STAMPS:
            return
        say(token, "stamp", at=time.time())
        if number < LEAST_STAMPS:
            time.sleep(every_s)
        else:
            over.wait(every_s)


def _flood(size: int) -> None:
    for number in range(size >> 10):
        sys.stdout.write(f"{FLOOD_LINE}{number:06d}".ljust(1023, ".") + "\n")
    sys.stdout.flush()


# --- the kernels `limit` and `cancel` ---


def _wait_for_the_end(token: str, order: Mapping[str, Any], working: Path) -> int:
    """Write a file and run until this process is ended. Signals that arrive before the end are reported."""
    began = time.monotonic()
    heard: list[str] = []
    for each in _SIGNALS:
        signal.signal(each, lambda number, _: heard.append(signal.Signals(number).name))
    with (working / KEPT_FILE).open("w") as kept:
        while (age := time.monotonic() - began) < float(order["limit_s"]) + LIVES_OVER_S:
            while heard:
                name = heard.pop(0)
                say(token, "signal", name=name, at=time.time(), age=round(age, 2))
                kept.write(f"{name} after {age:.2f} s\n")
            kept.write(f"alive after {age:.2f} s\n")
            kept.flush()
            say(token, "stamp", at=time.time(), age=round(age, 2))
            time.sleep(float(order["stamp_every_s"]))
    return 0


# --- the kernel `main` ---


def _probe(carried: Mapping[str, Any], working: Path, home: Path) -> list[Outcome]:
    """Run all probes of this machine. Only those that need the packages wait for the installation."""
    order, token = carried["order"], carried["token"]
    wanted = set(order["probes"])

    def tell(found: Outcome) -> Outcome:
        say(token, "outcome", **found.as_dict())
        return found

    def ask(name: str, probe: Probe) -> Outcome:
        return tell(attempt(name, probe) if name in wanted else not_asked(name, "left out of this check"))

    with ThreadPoolExecutor(5) as pool:
        plain = [pool.submit(ask, name, probe) for name, probe in _plain(order, working).items()]
        environment = boot.environment(home / "lib", home / "packages")
        if wanted & PACKAGED:
            probes = packaged(order, environment, carried["requirements"], home / "packages")
            plain += [pool.submit(ask, name, probe) for name, probe in probes.items()]
        else:
            plain += [pool.submit(ask, name, _nothing) for name in PACKAGED]
        found = {each.name: each for each in _results(plain)}
    if not order["uploads"]:
        found[outcome.DRIVE_UPLOAD] = not_asked(outcome.DRIVE_UPLOAD, "the store in use is not Google Drive")
    found[outcome.DRIVE_SIGN_IN] = not_asked(
        outcome.DRIVE_SIGN_IN, "not part of this check, only of a check in a notebook"
    )
    return [found[name] for name in outcome.PROBES if name not in _ELSEWHERE]


def _results(futures: Iterable[Future[Outcome]]) -> list[Outcome]:
    return [future.result() for future in futures]


def _plain(order: Mapping[str, Any], working: Path) -> dict[str, Probe]:
    staged = order["staged"]
    probes: dict[str, Probe] = {
        outcome.INPUTS: lambda: inputs(working.parent / "input", staged["name"], staged["sha256"])
    }
    if order["uploads"]:
        probes[outcome.DRIVE_UPLOAD] = lambda: uploads(order["uploads"])
    return probes


PACKAGED = frozenset({outcome.TRAINING, outcome.EQUAL_BYTES, outcome.ALL_REDUCE, outcome.HUB})
"""Probes that need the packages for training."""


def _nothing() -> tuple[str, dict[str, Any]]:
    return "", {}


def packaged(
    order: Mapping[str, Any], environment: dict[str, str], requirements: list[str], folder: Path
) -> dict[str, Probe]:
    """Install the packages into their own folder, as a session does. Returns the probes that need them."""
    limit_s, source = float(order["probe_s"]), order["hub"]
    try:
        package_folder.ready(folder, requirements)
    except InstallError as error:
        words, cause = f"the packages could not be installed: {error}", error.cause

        def refuse() -> tuple[str, dict[str, Any]]:
            raise ProbeError(words, cause=cause)

        return dict.fromkeys(PACKAGED, refuse)
    return {
        outcome.TRAINING: lambda: training(limit_s, environment),
        outcome.EQUAL_BYTES: lambda: equal_bytes(limit_s, environment),
        outcome.ALL_REDUCE: lambda: all_reduce(order["device"], limit_s, environment),
        outcome.HUB: lambda: hub(source["repo"], source["file"], float(order["hub_s"]), environment),
    }
