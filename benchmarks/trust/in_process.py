"""A real server on a real socket, whose sessions the worker's own code runs in this process, one after the other."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from orchestrator.bootstrap import build
from orchestrator.config import Settings
from orchestrator.domain.evaluations import Answers
from orchestrator.ports.providers import Liveness
from orchestrator.providers.registry import Registry
from orchestrator.services.dispatch import dispatch
from orchestrator.services.reconcile import reconcile
from orchestrator.testing import FakeProvider
from tests.helpers.evaluations import stored_answers
from tests.http.http_client import Api, served
from worker.agent.run import run
from worker.shared.messages import Ticket

PATIENCE_S = 300.0
"""A submit waits for the checks of its data, which start a process. A busy machine may take long for that."""


class Trainings:
    """What a member does with a server: submit jobs and wait for their end."""

    def __init__(self, api: Api, pool: FakeProvider, folder: Path) -> None:
        self._api, self._pool, self._folder = api, pool, folder
        self.me = api.admin

    def finish(self, job: str) -> None:
        """Run a queued job to its end. Raises `RuntimeError` with the end of its log if it does not succeed."""
        dispatch(self._api.app.context)
        request = self._pool.launched[-1]
        assert request.job_id == job
        home = self._folder / request.lease_id
        home.mkdir()
        ticket = Ticket(
            lease=request.lease_id,
            token=request.token,
            budget_s=request.budget_s,
            server_url=str(self._api.client.base_url),
        )
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        with (home / "log").open("w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            run(ticket, home, began=time.monotonic())
        for number, handler in handlers.items():
            signal.signal(number, handler)
        self._pool.liveness[request.lease_id] = Liveness.ENDED
        reconcile(self._api.app.context)
        if self.me.get(f"/jobs/{job}").json()["state"] != "succeeded":
            raise RuntimeError((home / "log").read_text()[-2000:])

    def answers(self, evaluation: str) -> list[Answers]:
        """The answers of a finished evaluation, with the model that wrote each."""
        with self._api.app.context.uow() as tx:
            return stored_answers(tx, evaluation)

    def post(self, path: str, body: Any = None) -> dict[str, Any]:
        """JSON of a POST. Raises `RuntimeError` with the server's message."""
        answer = self.me.post(path, body)
        if not answer.is_success:
            raise RuntimeError(f"{path}: {answer.text}")
        return answer.json()


@contextlib.contextmanager
def trainings(folder: Path, models: Path) -> Iterator[Trainings]:
    """A server over this folder that may train the models in a folder."""
    pool, address = FakeProvider("local", shares_disk=True, this_computer=True), [""]
    settings = Settings(data_dir=folder / "data", offline=True, allowed_folders=(models,))
    app = build(settings, server_url=lambda: address[0], providers=Registry.of({"local": pool}))
    app.context = dataclasses.replace(app.context, spawn=lambda work: work())
    (folder / "sessions").mkdir()
    try:
        with served(app) as api:
            address[0] = str(api.client.base_url)
            with httpx.Client(base_url=address[0], timeout=PATIENCE_S, trust_env=False) as client:
                yield Trainings(Api(app=app, client=client), pool, folder / "sessions")
    finally:
        app.close()
