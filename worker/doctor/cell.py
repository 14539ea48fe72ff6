"""What a Colab cell runs: the probes that a runtime can answer, and the way of the answer to the server."""

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
from worker.shared.packages import every_line
from worker.shared.signed_lines import signed

TIMEOUT_S = 20.0
DRIVE = "https://www.googleapis.com/auth/drive"
NOT_HERE = "not asked here: only a check of Kaggle asks it"
_SIGNS = {outcome.OK: "ok", outcome.FAILED: "FAILED", outcome.NOT_ASKED: "-"}


def run(order: Mapping[str, Any], home: Path) -> None:
    """Answer the probes of `order`, show them, and send or print the signed answer; this package lies in `home / "lib"`."""
    found = [each.as_dict() for each in _probes(order, home)]
    answer = {"check": order["check"], "machine": device(), "versions": versions(), "probes": found}
    answer["image"] = image(boot.environment(home / "lib", home / "packages"))
    line = signed(order["token"], json.dumps({"kind": "answer", "at": time.time(), **answer}, separators=(",", ":")))
    if order["server"] and (problem := send(order["server"], line)):
        print(f"The server was not reached from here ({problem}).")
    elif order["server"]:
        print("The server has the answer; what follows need not be copied.")
    else:
        print("Save the next line to a file on the server's computer: trainhop doctor --colab --answer FILE")
    print(line)


def device() -> str:
    """What this runtime trains on, `gpu` or `cpu`, without loading torch into the kernel."""
    return "gpu" if Path("/proc/driver/nvidia/version").exists() else "cpu"


def _probes(order: Mapping[str, Any], home: Path) -> list[Outcome]:
    """One after the other: a person looks on, and the runtime has two processors."""
    environment = boot.environment(home / "lib", home / "packages")
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
    """Two processes add up on the CPU unless there are two GPUs."""
    return "cuda" if len(list(Path("/proc/driver/nvidia/gpus").glob("*"))) > 1 else "cpu"


def sign_in(drive: str) -> tuple[str, dict[str, Any]]:
    """Sign in as a notebook does, and read from the Drive whose address is `drive`."""
    try:
        import google.auth
        import google.auth.transport.requests
        from google.colab import auth  # pyright: ignore[reportMissingImports] - only Colab has it
    except ImportError as error:
        raise ProbeError(f"this is no Colab runtime ({error}): open the cell at colab.research.google.com") from error
    auth.authenticate_user()
    credentials, _ = google.auth.default(scopes=[DRIVE])
    credentials.refresh(google.auth.transport.requests.Request())
    asked = urllib.request.Request(  # noqa: S310  Google's own address
        f"{drive}/drive/v2/about?fields=kind", headers={"Authorization": f"Bearer {credentials.token}"}
    )
    with urllib.request.urlopen(asked, timeout=TIMEOUT_S) as answer:  # noqa: S310
        answer.read(1 << 16)
    return "the sign-in works, and Google Drive answers", {"signed_in": True}


def send(server: str, line: str) -> str:
    """Bring the answer to the server; returns why that did not work, or nothing."""
    body = json.dumps({"line": line}).encode()
    asked = urllib.request.Request(  # noqa: S310  the server's own address
        f"{server}/api/v1/checks/colab:answer", data=body, headers={"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(asked, timeout=TIMEOUT_S) as answer:
            answer.read(1 << 20)
    except OSError as error:
        return str(error)
    return ""
