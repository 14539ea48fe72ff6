"""Runs workers as processes of this computer, each with a wall-clock limit. They survive a restart of the server."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

from pydantic import Field

from orchestrator.ports.providers import (
    Account,
    AccountSettings,
    Capabilities,
    Capacity,
    DriverEnv,
    Handle,
    LaunchRejected,
    LaunchRequest,
    Liveness,
    Observation,
    Provider,
    ProviderTexts,
    SessionOutput,
)
from orchestrator.providers.session_records import left_messages, part_of
from orchestrator.providers.worker_variables import worker_variables
from worker.shared import session_process
from worker.shared.files import is_locked
from worker.shared.installation import missing_modules
from worker.shared.messages import Ticket
from worker.shared.process import INSTANCE, process_instance
from worker.shared.session_process import LOG_NAME, cannot_train, write_private

START_UP_S = 20.0
NVIDIA_SMI_S = 10.0


class LocalAccountSettings(AccountSettings):
    """Settings of a pool of this computer."""

    memory_bytes: Annotated[int | None, Field(description="Bytes of memory for each session (default: measured).")] = (
        None
    )


class LocalProvider(Provider):
    """Implements `ports.Provider`. Each lease has a folder with its ticket, process id, output and spool.

    The worker first writes its process id to `pid.json`, so a server that was killed right after the launch finds the
    worker again. A session is ENDED when that process has ended. An interrupted launch leaves a folder without
    `pid.json`, which counts as ENDED after `START_UP_S`. The server is notified when a process that it started has
    ended. A process with the id of another instance is not of this server, whatever the folder says: the folder may be
    a copy. Offline workers never call the Hugging Face hub. All others call it without the operator's token, since any
    member's job may run here.
    """

    capabilities = Capabilities(provider="local", shares_disk=True, local=True, this_computer=True)
    texts = ProviderTexts(title="This computer", machines="Processes of this computer, on its GPU if it has one.")
    account_settings = LocalAccountSettings
    folder_name = "sessions"

    def __init__(self, env: DriverEnv, *, missing: Callable[[], Sequence[str]] = missing_modules) -> None:
        self._env, self._folder = env, env.folder
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._elsewhere: dict[str, Path] = {}
        self._closed_reason = cannot_train(missing())
        self._folder.mkdir(parents=True, exist_ok=True)

    def capacity(self, account: Account) -> Capacity:
        card = _gpu_bytes()
        return Capacity(
            slots=0 if self._closed_reason else int(account.config.get("slots", 1)),
            closed_reason=self._closed_reason,
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
        write_private(home / "ticket.json", ticket.model_dump_json())
        try:
            child = self._spawn(home, request)
        except OSError as error:
            raise LaunchRejected(f"the worker process could not be started: {error}") from error
        self._children[request.lease_id] = child
        threading.Thread(target=self._await, args=(child,), daemon=True).start()
        return str(child.pid)

    def _await(self, child: subprocess.Popen[bytes]) -> None:
        child.wait()
        self._env.notify()

    def _spawn(self, home: Path, request: LaunchRequest) -> subprocess.Popen[bytes]:
        environment = session_process.environment() | worker_variables(self._env, request.account)
        return session_process.start(home, environment | {INSTANCE: self._env.instance_id})

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
            and abs(time.time() - home.stat().st_mtime) < START_UP_S  # the clock may have been set back
        ):
            return Observation(lease_id=lease_id, liveness=Liveness.UNKNOWN, detail="is starting")
        failed = code is not None and code > 0
        detail = session_process.cause(code) + (session_process.last_words(home / LOG_NAME) if failed else "")
        return Observation(lease_id=lease_id, liveness=Liveness.ENDED, detail=detail, failed=failed)

    def stop(self, handle: Handle) -> None:
        child = self._children.get(handle.lease_id)
        pid = child.pid if child is not None and child.poll() is None else self._pid(handle.lease_id)
        if pid is not None:
            session_process.end(pid)

    def collect_outputs(self, handle: Handle) -> SessionOutput:
        return SessionOutput(messages=left_messages(self._home(handle.lease_id) / "outbox.jsonl"))

    def clean_up(self, handle: Handle) -> None:
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

    def delete_log(self, handle: Handle) -> None:
        shutil.rmtree(self._home(handle.lease_id), ignore_errors=True)

    def log(self, handle: Handle, offset: int, limit: int) -> bytes | None:
        return part_of(self._home(handle.lease_id) / LOG_NAME, offset, limit)

    def _home(self, lease_id: str) -> Path:
        return self._elsewhere.get(lease_id, self._folder / lease_id)

    def _pid(self, lease_id: str) -> int | None:
        """The id that the worker wrote, if that process still runs. A process id that was reused does not count."""
        pid = session_process.noted_process(self._home(lease_id))
        return pid if pid is not None and self._is_ours(pid, lease_id) else None

    def _is_ours(self, pid: int, lease_id: str) -> bool:
        """Whether this instance started the process.

        Its working folder decides as well, because workers of earlier versions have no instance, and two folders may
        have one id. The folder of a moved one may be gone. That of a restored one may be there without its server: the
        files of the session are there then.
        """
        started_by, works_in = process_instance(pid)
        if started_by and started_by != self._env.instance_id:
            return False
        if works_in is None:
            return True
        with contextlib.suppress(OSError):
            return works_in.samefile(self._home(lease_id)) or (bool(started_by) and self._is_left(lease_id, works_in))
        return bool(started_by)

    def _is_left(self, lease_id: str, folder: Path) -> bool:
        """Whether a folder is that of this session in a data folder without a server, which this one is a copy of."""
        sessions = folder.parent
        if (sessions.name, folder.name) != (self._folder.name, lease_id) or is_locked(sessions.parent / "server.lock"):
            return False
        self._elsewhere[lease_id] = folder
        return True


def _ram_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@cache
def _gpu_bytes() -> int:
    """Memory of the GPU that a worker on this computer would train on. 0 if it would train on the CPU."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    try:
        if hidden or version("torch").endswith("+cpu"):
            return 0
        asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        told = subprocess.run(asked, capture_output=True, text=True, timeout=NVIDIA_SMI_S, check=True).stdout
        return int(told.split()[0]) << 20
    except (PackageNotFoundError, OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0
