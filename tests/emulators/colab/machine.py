"""A machine: a folder, a Jupyter server of its own in it, and the kernels that it starts."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

START_S = 60.0
LATE_S = "TEST_KERNEL_STARTS_AFTER_S"
KERNEL = f"""
import os, time
time.sleep(float(os.environ.get({LATE_S!r}, 0)))
os.chdir('content')
from ipykernel.kernelapp import launch_new_instance
launch_new_instance()
"""
CONFIG = """
from jupyter_server.auth import IdentityProvider

class Proxy(IdentityProvider):
    def get_token(self, handler):
        sent = handler.request.headers.get("X-Colab-Runtime-Proxy-Token")
        return sent or handler.get_argument("colab-runtime-proxy-token", None)

c.ServerApp.identity_provider_class = Proxy
"""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """The Python that cells run in, and the variables that they find besides the server's."""

    python: str
    environment: Mapping[str, str]

    @property
    def spec(self) -> dict[str, object]:
        """What Jupyter starts it by."""
        command = [self.python, "-c", KERNEL, "-f", "{connection_file}"]
        return {"argv": command, "display_name": "Python 3", "language": "python", "env": dict(self.environment)}


class Machine:
    """`python` runs the server; None for a machine that exists in name only."""

    def __init__(self, folder: Path, nbh: str, accelerator: str, python: str | None, kernel: Kernel) -> None:
        self.endpoint = f"gpu-{accelerator.lower()}-s-{secrets.token_hex(6)}"
        self.folder, self.nbh, self.accelerator = folder / self.endpoint, nbh, accelerator
        self.token, self.url = secrets.token_urlsafe(16), "http://127.0.0.1:9"
        self._process: subprocess.Popen[bytes] | None = None
        (self.folder / "content").mkdir(parents=True)
        if python is not None:
            self._start(python, kernel)

    @property
    def content(self) -> Path:
        """Where a kernel starts."""
        return self.folder / "content"

    def _start(self, python: str, kernel: Kernel) -> None:
        home = self.folder / ".jupyter"
        specs = home / "data" / "kernels" / "python3"
        specs.mkdir(parents=True)
        (specs / "kernel.json").write_text(json.dumps(kernel.spec))
        (home / "config").mkdir()
        (home / "config" / "jupyter_server_config.py").write_text(CONFIG)
        places = {f"JUPYTER_{name.upper()}_DIR": str(home / name) for name in ("data", "config", "runtime")}
        places["JUPYTER_PATH"] = str(home / "data")  # before the kernel of the server's own environment
        options = [
            "--allow-root",
            "--no-browser",
            "--ip=127.0.0.1",
            "--port=0",
            f"--IdentityProvider.token={self.token}",
        ]
        with (home / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [python, "-m", "jupyter_server", *options, f"--ServerApp.root_dir={self.folder}"],
                cwd=self.folder,
                env={"HOME": str(home), "PATH": os.defpath, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | places,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + START_S
        while not (said := self._address(home / "runtime")):
            assert self._process.poll() is None, (home / "log").read_text()
            assert time.monotonic() < until, (home / "log").read_text()
            time.sleep(0.05)
        self.url = said

    def _address(self, runtime: Path) -> str:
        """Where it answers, as soon as it does."""
        with suppress(ValueError, StopIteration, OSError):
            port = json.loads(next(runtime.glob("jpserver-*.json")).read_text())["port"]
            socket.create_connection(("127.0.0.1", port), 1).close()
            return f"http://127.0.0.1:{port}"
        return ""

    def processes(self) -> list[psutil.Process]:
        """Its server, kernels, and what they have started."""
        if self._process is None:
            return []
        with suppress(psutil.NoSuchProcess):
            server = psutil.Process(self._process.pid)
            return [server, *server.children(recursive=True)]
        return []

    def end(self) -> None:
        """Every process ends at once, as when a machine is switched off."""
        going = self.processes()
        for process in going:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self._process is not None:
            self._process.wait()
        psutil.wait_procs(going, 10)
