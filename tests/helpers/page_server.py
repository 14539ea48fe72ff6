"""A server on a free port in a thread of this process, with machines that tests drive by hand over HTTP."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from orchestrator.bootstrap import App, build
from orchestrator.config import Settings
from orchestrator.entrypoints.http.app import make_app
from orchestrator.providers.registry import Registry
from orchestrator.services.reconcile import reconcile
from orchestrator.services.running_checks import RunningChecks
from orchestrator.testing import FakePersonalProvider, FakeProvider
from tests.helpers.waiting import wait_for
from tests.http.http_client import Api, Machine
from worker.shared.certificates import certificates


@dataclass
class PageServer:
    """`api` speaks to the running server; `provider` is what is registered as `local`."""

    folder: Path
    port: int
    provider: FakeProvider
    settings: dict[str, Any] = field(default_factory=dict)
    checks: RunningChecks | None = None
    app: App = field(init=False)
    api: Api = field(init=False)

    def up(self) -> None:
        """Start, or start again over the same data."""
        config = Settings(**{"data_dir": self.folder / "data", "offline": True, "local_slots": 4} | self.settings)
        providers = Registry.of({"local": self.provider, "cloud": FakePersonalProvider()})
        app = build(config, providers=providers, server_url=lambda: self.url)
        app.context = replace(app.context, spawn=lambda work: work(), checks=self.checks)
        self.app = app
        self._server = uvicorn.Server(
            uvicorn.Config(make_app(app), log_level="warning", access_log=False, timeout_graceful_shutdown=1)
        )
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]}, daemon=True)
        self._thread.start()
        wait_for(lambda: self._server.started, "the server")
        self.client = httpx.Client(base_url=self.url, verify=certificates(), trust_env=False, timeout=60)
        self.api = Api(app=app, client=self.client)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def down(self) -> None:
        """Stop answering; streams end as they would with the process."""
        self.client.close()
        self._server.should_exit = True
        self._thread.join(30)
        self._listener.close()
        self.app.close()

    def link(self) -> str:
        """A one-time link for the admin."""
        return self.api.admin.post("/login-links").json()["url"]

    def machine(self) -> Machine:
        """The machine that the next dispatch starts, already started."""
        machine = Machine.launched(self.api, self.provider)
        assert machine.start(nonce=machine.lease).status_code == 200
        return machine

    def reconcile(self) -> None:
        reconcile(self.app.context)


def steps(machine: Machine, first: int, last: int, *, total: int, **more: Any) -> None:
    """Report steps `first` to `last` in one message, with the values that a real session reports."""
    rows = [{"step": s, "values": values(s, total)} for s in range(first, last + 1)]
    report = {
        "phase": "train",
        "metrics": rows,
        "seconds_per_step": 0.8,
        "ledger": {"boot": 4.0, "load": 3.0, "train": 20.0},
    }
    answer = machine.report(last, **(report | more))
    assert answer.status_code == 200, answer.text


def values(step: int, total: int) -> dict[str, float]:
    loss = 0.6 + 2.2 * math.exp(-3.5 * step / total) + 0.09 * math.sin(step * 1.7) * math.exp(-step / total)
    return {
        "loss": loss,
        "learning_rate": 2e-4 * (1 - step / (total + 1)),
        "grad_norm": 0.4 + 0.1 * math.cos(step),
        "tokens": 512.0,
        "tokens_per_s": 640.0,
    }


@contextlib.contextmanager
def page_server(folder: Path, checks: RunningChecks | None = None, **settings: Any) -> Iterator[PageServer]:
    """A running server over a new data folder. It makes data checks only with `checks`."""
    provider = FakeProvider("local", slots=4, this_computer=True)
    found = PageServer(folder=folder, port=0, provider=provider, settings=settings, checks=checks)
    found.up()
    try:
        yield found
    finally:
        found.down()
