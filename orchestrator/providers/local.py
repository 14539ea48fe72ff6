"""Worker processes on this computer, each with a wall-clock budget; they outlive the server that started them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from orchestrator.domain.model import Account
from orchestrator.ports.providers import (
    Capabilities,
    Capacity,
    Handle,
    LaunchRejected,
    LaunchRequest,
    Leftovers,
    Liveness,
    Observation,
)
from worker.shared.messages import Ticket
from worker.shared.process import process_birth

START_UP_S = 20.0
NVIDIA_SMI_S = 10.0
LOG_NAME = "output.log"
TAIL_BYTES = 4096
MAX_LAST_WORDS = 300
HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE")
"""Variables that the hub's client takes a token from; a pool's own `env` may set them, for all who use the pool."""


class LocalProvider:
    """Implements `ports.Provider` with one folder per lease under `folder`: ticket, process id, output, spool.

    The worker's first act is to note its process in `pid.json`, so that a server killed right after the launch finds it again.
    A session is ENDED when that process is gone; a launch cut short leaves a folder without a note and is judged ENDED after
    `START_UP_S`. `on_exit` is called whenever a process that this server started has ended. `offline` workers never ask the
    Hugging Face hub; all others ask it without the operator's own token, since any member's job may run here.
    """

    capabilities = Capabilities(provider="local", shares_disk=True, local=True)

    def __init__(
        self,
        folder: Path,
        on_exit: Callable[[], None] = lambda: None,
        *,
        offline: bool = False,
        hub_endpoint: str | None = None,
    ) -> None:
        self._folder, self._on_exit, self._offline, self._hub_endpoint = folder, on_exit, offline, hub_endpoint
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def room(self, account: Account) -> Capacity:
        card = _gpu_bytes()
        return Capacity(
            slots=int(account.config.get("slots", 1)),
            session_s=float(account.config.get("session_s", 12 * 3600)),
            memory_bytes=int(account.config.get("memory_bytes") or card or _ram_bytes()),
            gpu=card > 0,
            start_up_s=START_UP_S,
        )

    def launch(self, request: LaunchRequest) -> str:
        home = self._home(request.lease_id)
        ticket = Ticket(
            lease=request.lease_id, token=request.token, budget_s=request.budget_s, server_url=request.server_url
        )
        try:
            home.mkdir(mode=0o700)
        except FileExistsError:
            child = self._children.get(request.lease_id)
            return str(child.pid if child is not None else self._pid(request.lease_id) or "")
        _write_private(home / "ticket.json", ticket.model_dump_json())
        try:
            child = self._spawn(home, request)
        except OSError as error:
            raise LaunchRejected(f"the worker process could not be started: {error}") from error
        self._children[request.lease_id] = child
        threading.Thread(target=self._await, args=(child,), daemon=True).start()
        return str(child.pid)

    def _await(self, child: subprocess.Popen[bytes]) -> None:
        child.wait()
        self._on_exit()

    def _spawn(self, home: Path, request: LaunchRequest) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "worker", str(home / "ticket.json")]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TRAINHOP_") and k not in HUB_TOKENS}
        # The hub's client would take the operator's token from the home folder, too.
        environment |= {"PYTHONUNBUFFERED": "1", "HF_TOKEN_PATH": os.devnull}
        if self._hub_endpoint:
            environment["HF_ENDPOINT"] = self._hub_endpoint
        if self._offline:
            environment["HF_HUB_OFFLINE"] = "1"
        environment |= {k: str(v) for k, v in request.account.config.get("env", {}).items()}
        with (home / LOG_NAME).open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=home,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def observe(self, handles: Sequence[Handle]) -> list[Observation]:
        return [self._observe(handle.lease_id) for handle in handles]

    def _observe(self, lease_id: str) -> Observation:
        home = self._home(lease_id)
        child = self._children.get(lease_id)
        code = child.poll() if child is not None else None
        pid = child.pid if child is not None and code is None else self._pid(lease_id)
        if pid is not None and code is None:
            return Observation(lease_id=lease_id, liveness=Liveness.RUNNING, external_id=str(pid))
        if (
            child is None
            and home.is_dir()
            and not (home / "pid.json").exists()
            and time.time() - home.stat().st_mtime < START_UP_S
        ):
            return Observation(lease_id=lease_id, liveness=Liveness.UNKNOWN, detail="is being started")
        failed = code is not None and code > 0
        detail = _cause(code) + (_last_words(home / LOG_NAME) if failed else "")
        return Observation(lease_id=lease_id, liveness=Liveness.ENDED, detail=detail, failed=failed)

    def stop(self, handle: Handle) -> None:
        child = self._children.get(handle.lease_id)
        pid = child.pid if child is not None and child.poll() is None else self._pid(handle.lease_id)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)

    def collect(self, handle: Handle) -> Leftovers:
        outbox = self._home(handle.lease_id) / "outbox.jsonl"
        if not outbox.is_file():
            return Leftovers()
        return Leftovers(messages=outbox.read_text(errors="replace").splitlines())

    def forget(self, handle: Handle) -> None:
        home = self._home(handle.lease_id)
        child = self._children.pop(handle.lease_id, None)
        if child is not None:
            child.wait(timeout=5)
        if not home.is_dir():
            return
        for entry in home.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name not in (LOG_NAME, "pid.json"):
                entry.unlink(missing_ok=True)

    def erase(self, handle: Handle) -> None:
        shutil.rmtree(self._home(handle.lease_id), ignore_errors=True)

    def log(self, handle: Handle, offset: int, limit: int) -> bytes | None:
        path = self._home(handle.lease_id) / LOG_NAME
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(limit)

    def _home(self, lease_id: str) -> Path:
        return self._folder / lease_id

    def _pid(self, lease_id: str) -> int | None:
        """The process that the worker itself noted, while that very process lives; a reused number does not count."""
        try:
            noted = json.loads((self._home(lease_id) / "pid.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return noted["pid"] if process_birth(noted["pid"]) == noted["born"] is not None else None


def _cause(code: int | None) -> str:
    if code is None or code == 0:
        return ""
    if code < 0:
        known = next((s.name for s in signal.Signals if s == -code), f"signal {-code}")  # real-time ones have no name
        return f"the process was ended by {known}"
    return f"the process ended with exit code {code}"


def _last_words(log: Path) -> str:
    """What a process that failed said last, for people."""
    try:
        with log.open("rb") as file:
            file.seek(-min(TAIL_BYTES, log.stat().st_size), os.SEEK_END)
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {last[:MAX_LAST_WORDS]}" if last else ""


def _ram_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@cache
def _gpu_bytes() -> int:
    """Memory of the GPU that a worker started here would train on; 0 if it would train on the CPU."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    try:
        if hidden or version("torch").endswith("+cpu"):
            return 0
        asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        told = subprocess.run(asked, capture_output=True, text=True, timeout=NVIDIA_SMI_S, check=True).stdout
        return int(told.split()[0]) << 20
    except (PackageNotFoundError, OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0


def _write_private(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
