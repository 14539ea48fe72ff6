"""Starts real servers quickly: a process that has imported the server forks one for each line of its input.

    python -m benchmarks.adversity.nursery

A line is the JSON of a data folder and settings. The answer is the process id of the new server, which serves until it
is killed. A server that refuses to start prints its reason to the folder's `log`.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from worker.shared.process import tied

IMPORTED_ONCE = (
    "alembic.command",
    "alembic.config",
    "orchestrator.entrypoints.background.server",
    "orchestrator.providers.colab",
    "orchestrator.providers.kaggle",
    "orchestrator.providers.local",
    "orchestrator.adapters.stores.google_drive.store",
    "uvicorn.protocols.http.auto",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
)


class Nursery:
    """The process that forks servers, from the benchmark's side. All servers end with it."""

    def __enter__(self) -> Self:
        command = tied([sys.executable, "-m", "benchmarks.adversity.nursery"])
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()
        self._alive: set[int] = set()
        return self

    def start(self, folder: Path, **settings: Any) -> int:
        """Start a server on this data folder. Returns its process id at once."""
        assert self._process.stdin is not None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "server.url").unlink(missing_ok=True)
        self._process.stdin.write(json.dumps({"data_dir": str(folder), "port": 0, **settings}) + "\n")
        self._process.stdin.flush()
        pid = int(self._read())
        self._alive.add(pid)
        return pid

    def kill(self, pid: int) -> bool:
        """End a server by SIGKILL and wait until it is gone. Returns whether it was still running."""
        self._alive.discard(pid)
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            wait([descriptor])  # when all its threads are gone, and with them its locks
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in list(self._alive):
            self.kill(pid)
        self._process.kill()
        self._process.wait()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process that starts servers has ended")
        return line


def _serve(settings: dict[str, Any]) -> None:
    from orchestrator.config import Settings
    from orchestrator.entrypoints.background.server import run

    folder = Path(settings["data_dir"])
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    try:
        run(Settings(**settings))
    except BaseException:  # noqa: BLE001  whatever it is, it ends this process and its reason is in the log
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(1)


def main() -> None:
    """Fork a server for each line of standard input."""
    for module in IMPORTED_ONCE:
        importlib.import_module(module)

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
    print("ready", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(0)
            _serve(json.loads(line))
        print(pid, flush=True)


if __name__ == "__main__":
    main()
