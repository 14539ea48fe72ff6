"""A judgement on a real server that is killed in the middle: the next one goes on where it was."""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from orchestrator.bootstrap import build
from orchestrator.config import Settings
from orchestrator.entrypoints.http.app import make_app
from tests.cli.conftest import end, start_server
from tests.emulators.judge import JudgeEmulator
from tests.helpers.evaluations import add_evaluation
from tests.helpers.waiting import wait_for
from tests.http.http_client import Api

pytestmark = pytest.mark.slow
PAIRS = 12


def _client(data: Path) -> httpx.Client:
    token = (data / "admin.token").read_text().strip()
    url = (data / "server.url").read_text().strip()
    return httpx.Client(base_url=f"{url}/api/v1", headers={"Authorization": f"Bearer {token}"}, trust_env=False)


def _evaluated(data: Path) -> str:
    """An evaluation of the admin's, in a data folder without a server."""
    app = build(Settings(data_dir=data, offline=True))
    app.context = replace(app.context, checks=None)
    try:
        with TestClient(make_app(app), base_url="http://127.0.0.1") as client:
            admin = Api(app=app, client=client).admin
            job, owner = admin.submit()["id"], admin.get("/me").json()["id"]
        add_evaluation(app.context.uow, job, PAIRS, owner=owner)
    finally:
        app.close()
    return job


def test_a_killed_server_goes_on_with_its_judgement(tmp_path: Path) -> None:
    """Guard: without `judge_due` in the scheduler, nothing was sent. What had an answer is not sent again."""
    data = tmp_path / "data"
    job = _evaluated(data)
    with JudgeEmulator() as judge:
        server = start_server(data, "--slots", "0")
        with _client(data) as client:
            wanted = {"name": "house", "url": judge.url, "model": judge.model, "consent": True}
            assert client.post("/judge-endpoints", json=wanted).status_code == 201
            judge.before = lambda _: server.send_signal(signal.SIGKILL) if len(judge.compared) == PAIRS else None
            made = client.post(f"/evaluations/{job}/judgements", json={"endpoint": "house"})
            assert made.status_code == 201, made.text
        assert server.wait(60) == -signal.SIGKILL
        judge.before = lambda _: None
        server = start_server(data, "--slots", "0")
        try:
            with _client(data) as client:

                def found() -> dict:
                    return client.get(f"/evaluations/{job}/judgements").json()["items"][0]

                wait_for(lambda: found()["state"] == "done", "the judgement")
                assert (found()["answered"], found()["conduct"]["pairs"]) == (2 * PAIRS, PAIRS)
        finally:
            end(server, data)
        times = Counter(seen.pair for seen in judge.compared)
        assert len(times) == 2 * PAIRS
        assert sum(count - 1 for count in times.values()) <= 4
