"""The program of a check's notebook cell: runs the probes and sends the result to the server."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worker.agent import boot
from worker.doctor import outcome
from worker.doctor.kernel import packaged
from worker.doctor.outcome import Outcome, ProbeError, attempt, not_asked
from worker.doctor.places import image, versions
from worker.shared import places
from worker.shared.packages import every_line
from worker.shared.signed_lines import signed

TIMEOUT_S = 20.0
DRIVE = "https://www.googleapis.com/auth/drive"
NOT_HERE = "not part of this check, only of a check on an account"
_SIGNS = {outcome.OK: "ok", outcome.FAILED: "FAILED", outcome.NOT_ASKED: "-"}


def run(order: Mapping[str, Any], home: Path) -> None:
    """Run the probes of `order`, show them, and send or print the signed result. This package is in `home / "lib"`."""
    found = [each.as_dict() for each in _probes(order, home)]
    answer = {"check": order["check"], "machine": device(), "versions": versions(), "probes": found}
    answer["image"] = image(_environment(home))
    line = signed(order["token"], json.dumps({"kind": "answer", "at": time.time(), **answer}, separators=(",", ":")))
    if order["server"] and (problem := send(order["server"] + order["answer_path"], line)):
        print(f"Could not reach the server ({problem}).")
    elif order["server"]:
        print("The server has received the result. You do not need to copy it.")
    else:
        print(f"Save the next line to a file on the server's computer: {order['answer_command']}")
    print(line)


def _environment(home: Path) -> dict[str, str]:
    """The environment of the probes' processes.

    They start in the notebook's folder, which may have a file worker.py.
    """
    return boot.environment(home / "lib", home / "packages") | {"PYTHONSAFEPATH": "1"}


def device() -> str:
    """The device of this runtime, `gpu` or `cpu`, found without loading torch into the kernel."""
    return "gpu" if Path("/proc/driver/nvidia/version").exists() else "cpu"


def _probes(order: Mapping[str, Any], home: Path) -> list[Outcome]:
    """Run the probes one after the other, because a person watches and the runtime has two processors."""
    environment = _environment(home)
    orders = {**order, "device": _reduced_on()}
    asked = {outcome.DRIVE_SIGN_IN: lambda: sign_in(order["drive"])}
    asked |= packaged(orders, environment, every_line(), home / "packages")
    found: list[Outcome] = []
    for name in outcome.PROBES:
        wanted = name in asked and name in order["probes"]
        ended = attempt(name, asked[name]) if wanted else not_asked(name, NOT_HERE)
        found.append(ended)
        if wanted:
            print(f"{_SIGNS[ended.status]:<7} {name:<14} {ended.words} ({ended.seconds:.0f} s)", flush=True)
    return found


def _reduced_on() -> str:
    """Two processes reduce on the CPU unless there are two GPUs."""
    return "cuda" if len(list(Path("/proc/driver/nvidia/gpus").glob("*"))) > 1 else "cpu"


def sign_in(drive: str) -> tuple[str, dict[str, Any]]:
    """Sign in as a notebook does, and read from the Drive at the address `drive`."""
    try:
        places.sign_in()
        import google.auth
        import google.auth.transport.requests
    except (places.NoSignInError, ImportError) as error:
        raise ProbeError(str(error)) from error
    credentials, _ = google.auth.default(scopes=[DRIVE])
    credentials.refresh(google.auth.transport.requests.Request())
    asked = urllib.request.Request(  # noqa: S310  Google's own address
        f"{drive}/drive/v2/about?fields=kind", headers={"Authorization": f"Bearer {credentials.token}"}
    )
    with urllib.request.urlopen(asked, timeout=TIMEOUT_S) as answer:  # noqa: S310
        answer.read(1 << 16)
    return "the sign-in works, and Google Drive responds", {"signed_in": True}


def send(address: str, line: str) -> str:
    """Send the result to the server at this address. Returns the error, or ""."""
    body = json.dumps({"line": line}).encode()
    asked = urllib.request.Request(  # noqa: S310  the server's own address
        address, data=body, headers={"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(asked, timeout=TIMEOUT_S) as answer:
            answer.read(1 << 20)
    except OSError as error:
        return str(error)
    return ""
