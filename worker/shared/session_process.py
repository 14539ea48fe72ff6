"""A session as a process of its own on this machine: its start, whether it still runs, and how it ended.

The server's own computer and machines that have joined a server start sessions in the same way.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from worker.shared.process import process_birth

LOG_NAME = "output.log"
HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE")
"""Variables with a token for the hub's client. A pool's own `env` may set them for all who use the pool."""
TAIL_BYTES = 4096
MAX_LAST_WORDS = 300


def environment() -> dict[str, str]:
    """The variables of this process without its settings and its tokens. Any member's job may run with them."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TRAINHOP_") and k not in HUB_TOKENS}
    # Otherwise the hub's client would also use the token in the home folder.
    return kept | {"PYTHONUNBUFFERED": "1", "HF_TOKEN_PATH": os.devnull}


def start(home: Path, variables: Mapping[str, str], python: str = sys.executable) -> subprocess.Popen[bytes]:
    """Start the worker of the ticket in the folder `home`. Its output is added to `output.log`. Raises `OSError`."""
    with (home / LOG_NAME).open("ab") as log:
        return subprocess.Popen(
            [python, "-m", "worker", str(home / "ticket.json")],
            cwd=home,
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def noted_process(home: Path) -> int | None:
    """The id that the worker in this folder wrote, if that process still runs. A reused id does not count."""
    try:
        record = json.loads((home / "pid.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    return record["pid"] if process_birth(record["pid"]) == record["born"] is not None else None


def end(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a session's process, and if it is SIGKILL to all processes that it has started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number) if number is signal.SIGKILL else os.kill(pid, number)


def cause(code: int | None) -> str:
    """How a process with this exit code ended, for people. Empty if it ended well, or if that is not known."""
    if code is None or code == 0:
        return ""
    if code < 0:
        # real-time signals have no name
        known = next((s.name for s in signal.Signals if s == -code), f"signal {-code}")

        return f"the process was killed by {known}"
    return f"the process ended with exit code {code}"


def last_words(log: Path) -> str:
    """The last output of a failed process, for people, after a colon. Empty if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(-min(TAIL_BYTES, log.stat().st_size), os.SEEK_END)
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {last[:MAX_LAST_WORDS]}" if last else ""


def cannot_train(missing: Sequence[str]) -> str:
    """Why nothing is started here, for people. Empty if training lacks nothing."""
    if not missing:
        return ""
    return f"this computer cannot train without {', '.join(missing)}; `trainhop doctor` says how to install it"


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
