"""The demo's private server, with its own process, data folder and port. It stops with the demo."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from orchestrator.entrypoints.cli.client import Client, CommandError, Exit
from trainhop.errors import Error
from worker.shared.process import process_birth, tied

START_S = 90.0
STOP_S = 15.0


class PrivateServer:
    """A server with a new folder in `parent`. Jobs can use models under `models`. `settings` are more variables."""

    def __init__(self, parent: Path, models: Path, settings: Mapping[str, str]) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_earlier(parent)
        self.folder = Path(tempfile.mkdtemp(prefix="run-", dir=parent))
        self._models, self._settings = models, settings
        self._process: subprocess.Popen[bytes] | None = None
        self.client: Client

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "orchestrator.entrypoints.cli.main", "up", "--port", "0", "--slots", "1"]
        command += ["--data-dir", str(self.folder), "--allow-folder", str(self._models)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TRAINHOP_")}
        environment |= {"TRAINHOP_REPORT_EVERY_S": "1", **self._settings}
        with (self.folder / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                tied(command), env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self.client = self._wait()
        except BaseException:
            self.close()
            raise
        return self

    def _wait(self) -> Client:
        assert self._process is not None
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError, Error):
                url = (self.folder / "server.url").read_text().strip()
                client = Client(url, (self.folder / "admin.token").read_text().strip())
                client.get("/me")
                return client
            time.sleep(0.2)
        last = (self.folder / "server.log").read_text(errors="replace").splitlines()[-5:]
        raise CommandError(
            Exit.FAILED, f"The demo's server did not start. The end of {self.folder / 'server.log'}:", *last
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server, then its workers, which would otherwise keep running."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for session in (self.folder / "sessions").glob("*"):
            self.kill(session.name)

    def kill(self, session: str) -> bool:
        """Kill a session's worker with SIGKILL. Returns whether there was one."""
        try:
            noted = json.loads((self.folder / "sessions" / session / "pid.json").read_text())
            if process_birth(noted["pid"]) != noted["born"]:
                return False
            os.killpg(noted["pid"], signal.SIGKILL)
        except (OSError, ValueError, KeyError):
            return False
        return True


def _remove_earlier(parent: Path) -> None:
    """Delete folders of earlier demos, except those with a running server."""
    for folder in parent.glob("run-*"):
        if not _in_use(folder / "server.lock"):
            shutil.rmtree(folder, ignore_errors=True)


def _in_use(lock: Path) -> bool:
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
