"""A real server process on a free port with its own data folder, for benchmarks that submit, watch and kill."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import httpx

from tests.helpers.ports import quiet_port
from tests.helpers.waiting import first_true
from worker.shared.process import tied

PATIENCE_S = 90.0
"""A busy machine may start processes slowly. No result depends on this limit."""


class Lab:
    """`trainhop up` in `folder`, with the settings given as `TRAINHOP_*` variables, and with other `variables`."""

    def __init__(self, folder: Path, variables: Mapping[str, str] | None = None, /, **settings: object) -> None:
        self._variables = variables or {}
        self.data = folder / "data"
        self._log = folder / "server.log"
        self._settings = {f"TRAINHOP_{k.upper()}": str(v) for k, v in settings.items()}
        self._process: subprocess.Popen[bytes] | None = None
        self._port = quiet_port()  # kept over restarts, because the workers keep using it

        self.client = httpx.Client(trust_env=False, timeout=30)

    def up(self) -> None:
        """Start or restart the server and wait until it responds."""
        (self.data / "server.url").unlink(missing_ok=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TRAINHOP_")}
        environment |= self._settings | dict(self._variables)
        command = [sys.executable, "-m", "orchestrator.entrypoints.cli.main", "up", "--data-dir", str(self.data)]
        command += ["--port", str(self._port)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                tied(command), env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        self.wait_for((self.data / "server.url").exists, "the server's address")
        self.client.base_url = httpx.URL((self.data / "server.url").read_text().strip() + "/api/v1")
        token = (self.data / "admin.token").read_text().strip()
        self.client.headers["Authorization"] = f"Bearer {token}"
        self.wait_for(self._answers, "the server's answer")

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.client.get("/me").is_success
        return False

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL the server. Its workers keep running."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def down(self) -> None:
        """Stop the server and all processes that it started."""
        self.client.close()
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
            self._process.kill()
            self._process.wait()
        for pid in self.workers().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        try:
            self.up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def get(self, path: str, **query: Any) -> Any:
        """JSON of a GET. Raises with the server's message."""
        return self._checked(self.client.get(path, params=query))

    def post(self, path: str, body: Any = None) -> Any:
        """JSON of a POST. Raises with the server's message."""
        return self._checked(self.client.post(path, json=body))

    def put(self, path: str, body: Any) -> Any:
        """JSON of a PUT. Raises with the server's message."""
        return self._checked(self.client.put(path, json=body))

    def patch(self, path: str, body: Any) -> Any:
        """JSON of a PATCH. Raises with the server's message."""
        return self._checked(self.client.patch(path, json=body))

    @staticmethod
    def _checked(answer: httpx.Response) -> Any:
        if not answer.is_success:
            raise RuntimeError(f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text}")
        return answer.json() if answer.content else None

    def upload(self, file: Path) -> str:
        """Upload a dataset. Returns the path that a job uses for it."""
        answer = self.client.post("/datasets", params={"name": file.name}, content=file.read_bytes())
        return f"sha256:{self._checked(answer)['sha256']}"

    def workers(self) -> dict[str, int]:
        """Process ids of running workers by lease."""
        result: dict[str, int] = {}
        for note in (self.data / "sessions").glob("*/pid.json"):
            with contextlib.suppress(ValueError, OSError):
                pid = json.loads(note.read_text())["pid"]
                os.kill(pid, 0)
                result[note.parent.name] = pid
        return result

    def last_step(self, lease: str) -> int:
        """The newest step that a worker has printed, without a request to the server."""
        log = self.data / "sessions" / lease / "output.log"
        steps = [line.split()[1] for line in log.read_text(errors="replace").splitlines() if line.startswith("step ")]
        return int(steps[-1]) if steps else -1

    @staticmethod
    def wait_for(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S, every_s: float = 0.01) -> Any:
        """The first true result of `condition`."""
        if result := first_true(condition, patience_s, every_s):
            return result
        raise TimeoutError(f"waited {patience_s:.0f} s for {what}")

    def job(self, ident: str) -> dict[str, Any]:
        """The job as the API shows it. Retries while the server restarts."""
        while True:
            with contextlib.suppress(httpx.TransportError):
                return self.get(f"/jobs/{ident}")
            time.sleep(0.1)


@contextlib.contextmanager
def lab(folder: Path, variables: Mapping[str, str] | None = None, /, **settings: object) -> Iterator[Lab]:
    """A running lab in a folder that is created if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    with Lab(folder, variables, **settings) as running:
        yield running
