"""What a server of commit b2ace15 left behind goes on working: its data folder, checkpoints and running notebooks.

`make_old_folder.py` says what is in the archive. Each test unpacks it and starts today's server on it, a minute after
the moment at which the old one was killed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from orchestrator.bootstrap import build
from orchestrator.config import Settings
from orchestrator.entrypoints.background.scheduler import Ticker
from orchestrator.entrypoints.http.app import make_app
from tests.emulators.kaggle import KaggleEmulator, Person
from tests.helpers.waiting import wait_for
from tests.migrations.make_old_folder import ARCHIVE, HALF, MODEL
from worker.shared import checkpoint_file
from worker.shared.process import process_birth

PATIENCE_S = 180.0
LATER_S = 60.0


class ClockFrom:
    """The time of day, as if it were `start` now."""

    def __init__(self, start: float) -> None:
        self._offset = start - time.monotonic()

    def now(self) -> float:
        return time.monotonic() + self._offset


@dataclass
class Upgraded:
    """Today's server over the unpacked folder, and what is known of the folder."""

    folder: Path
    facts: dict[str, Any]
    url: str
    client: httpx.Client

    def get(self, path: str) -> Any:
        return self._checked(self.client.get(path))

    def post(self, path: str, body: Any = None, token: str | None = None) -> Any:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        content = body if isinstance(body, str) else json.dumps(body)
        headers["Content-Type"] = "application/json"
        return self._checked(self.client.post(path, content=content, headers=headers))

    @staticmethod
    def _checked(answer: httpx.Response) -> Any:
        assert answer.is_success, f"{answer.request.url}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def job(self, name: str) -> dict[str, Any]:
        """A job of the folder by the name that `make_old_folder` gave it."""
        return self.get(f"/jobs/{self.facts['jobs'][name]}")

    def ended(self, name: str) -> dict[str, Any]:
        """The job once it has ended."""
        ends = ("succeeded", "failed", "cancelled")
        until = time.monotonic() + PATIENCE_S
        while (job := self.job(name))["state"] not in ends and time.monotonic() < until:
            time.sleep(0.1)
        return job


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upgraded]:
    folder = tmp_path_factory.mktemp("b2ace15")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    _put_model(folder / "model")
    facts = json.loads((folder / "facts.json").read_text())
    with (
        KaggleEmulator(folder / "kaggle", [Person(name="ada", token="KGAT_ada")]) as kaggle,
        socket.socket() as listener,
    ):
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        settings = Settings(
            data_dir=folder / "data",
            allowed_folders=(MODEL.parent,),
            offline=True,
            report_every_s=1,
            drivers={"kaggle": {"endpoint": kaggle.endpoint}},
        )
        with _serving(settings, listener, facts["at"] + LATER_S, url):
            headers = {"Authorization": f"Bearer {facts['admin_token']}"}
            with httpx.Client(base_url=f"{url}/api/v1", trust_env=False, timeout=60, headers=headers) as client:
                yield Upgraded(folder=folder, facts=facts, url=url, client=client)


def _put_model(source: Path) -> None:
    """Jobs and checkpoints name the model's folder, so it is always the same one."""
    if MODEL.is_dir():
        return
    MODEL.parent.mkdir(parents=True, exist_ok=True)
    aside = MODEL.with_name(f"model.{os.getpid()}")
    shutil.copytree(source, aside)
    with contextlib.suppress(OSError):  # another run was quicker
        aside.rename(MODEL)


@contextlib.contextmanager
def _serving(settings: Settings, listener: socket.socket, start: float, url: str) -> Iterator[None]:
    """What `trainhop up` does, with another clock."""
    app = build(settings, server_url=lambda: url)
    app.context = replace(app.context, clock=ClockFrom(start), started_at=start)
    ticker = Ticker(app)
    server = uvicorn.Server(uvicorn.Config(make_app(app), log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    ticker.start()
    thread.start()
    try:
        wait_for(lambda: server.started, "the server")
        yield
    finally:
        server.should_exit = True
        thread.join(30)
        ticker.stop()
        app.close()
        for note in settings.folder.glob("sessions/*/pid.json"):
            pid, born = json.loads(note.read_text()).values()
            if process_birth(pid) == born:  # the old worker's number may belong to another process by now
                os.kill(pid, signal.SIGKILL)


def test_a_running_worker_is_answered_as_before(upgraded: Upgraded) -> None:
    """Its messages, as the old code writes them: the start once more, two reports, a release."""
    ticket, messages = upgraded.facts["tickets"]["running"], upgraded.facts["messages"]
    lease, token, before = ticket["lease"], ticket["token"], messages["assignment"]
    again = upgraded.post(f"/leases/{lease}/start", messages["start"], token)
    assert {k: again[k] for k in ("job", "lease", "fence")} == {k: before[k] for k in ("job", "lease", "fence")}
    assert again["spec"].items() >= before["spec"].items()
    for report in messages["reports"]:
        assert upgraded.post(f"/leases/{lease}/report", report, token)["action"] == "continue"
    assert upgraded.job("running")["step"] == 1
    upgraded.post(f"/leases/{lease}/release", messages["release"], token)
    assert upgraded.job("running")["state"] == "queued"


def test_a_notebook_that_nobody_opened_still_claims_its_job(upgraded: Upgraded) -> None:
    request = {"protocol": 1, "code": upgraded.facts["code"], "nonce": "n", "hardware": {"name": "a notebook"}}
    claimed = upgraded.post("/claims", request)
    assert claimed["job"] == upgraded.facts["jobs"]["unopened"]
    assert claimed["ticket"]["token"]


def test_members_and_tokens_are_still_known(upgraded: Upgraded) -> None:
    assert upgraded.get("/me")["role"] == "admin"
    assert {m["name"] for m in upgraded.get("/members")["items"]} >= {"ada"}
    ada = httpx.get(
        f"{upgraded.url}/api/v1/me",
        headers={"Authorization": f"Bearer {upgraded.facts['ada']['token']}"},
        trust_env=False,
    ).json()
    assert (ada["id"], ada["role"]) == (upgraded.facts["ada"]["id"], "member")


def test_an_account_keeps_its_credentials(upgraded: Upgraded) -> None:
    """Kaggle itself, emulated, is asked with the token that the old server sealed."""
    (account,) = [a for a in upgraded.get("/accounts")["items"] if a["provider"] == "kaggle"]
    assert account["name"] == "ada-kaggle"
    assert account["consented_at"] is None
    checked = upgraded.post(f"/accounts/{account['id']}:check")
    assert checked["ok"], checked["words"]
    assert "signed in at Kaggle as ada" in checked["words"]


def test_a_dataset_has_its_bytes_and_a_channel_its_topics(upgraded: Upgraded) -> None:
    (dataset,) = upgraded.get("/datasets")["items"]
    assert (dataset["sha256"], dataset["name"]) == (upgraded.facts["dataset"], "stops.jsonl")
    (channel,) = upgraded.get("/notifications")["items"]
    assert channel["topics"] == ["failed"]


@pytest.mark.parametrize("name", ["queued", "paused", "cancelled"])
def test_a_job_that_did_not_run_is_as_it_was(upgraded: Upgraded, name: str) -> None:
    job = upgraded.job(name)
    assert (job["name"], job["state"]) == (name, name)


def test_a_finished_job_has_its_adapter_and_its_checkpoint(upgraded: Upgraded, tmp_path: Path) -> None:
    job, head = upgraded.job("finished"), upgraded.facts["heads"]["finished"]
    assert job["state"] == "succeeded"
    assert job["head"]["sha256"] == head["sha256"]
    archive = upgraded.client.get(f"/jobs/{job['id']}/adapter")
    assert "adapter_model.safetensors" in zipfile.ZipFile(io.BytesIO(archive.content)).namelist()
    path = tmp_path / "head.safetensors"
    path.write_bytes(upgraded.client.get(f"/jobs/{job['id']}/checkpoints/{head['sha256']}/file").content)
    _, manifest = checkpoint_file.load(path, head["sha256"])
    assert (manifest.job, manifest.step) == (job["id"], 4)


def test_the_half_done_job_goes_on_from_its_checkpoint(upgraded: Upgraded) -> None:
    """Today's worker reads the checkpoint that the old one wrote, and trains to the end."""
    job = upgraded.ended("half")
    assert (job["state"], job["step"]) == ("succeeded", 150), job["message"]
    old, *new = upgraded.get(f"/jobs/{job['id']}/sessions")["items"]
    assert old["state"] == "expired"
    assert new, "no session after the upgrade"
    assert new[0]["first_step"] >= HALF
    # `exact` needs the setup of the machine that made the folder: its processor, its threads, its libraries.
    assert new[-1]["fidelity"] in {"exact", "state-exact"}


def test_a_worker_of_an_old_notebook_trains_to_the_end(upgraded: Upgraded, tmp_path: Path) -> None:
    """The wheel that the notebook carries, with the lease that the old server gave it.

    The program ends without clearing up its interpreter: threads of torch sometimes abort that, after the work is done.
    """
    ticket = upgraded.facts["tickets"]["installing"] | {"server_url": upgraded.url}
    (tmp_path / "ticket.json").write_text(json.dumps(ticket))
    environment = os.environ | {"PYTHONPATH": str(upgraded.folder / "wheel"), "HF_HUB_OFFLINE": "1"}
    program = (
        "import os, sys, worker.claims\nfrom worker.__main__ import main\n"
        "code = main()\nsys.stdout.flush()\nsys.stderr.flush()\nos._exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "ticket.json")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    job = upgraded.job("installing")
    assert (job["state"], job["step"]) == ("succeeded", 4)
    assert job["head"]["step"] == 4
    (session,) = upgraded.get(f"/jobs/{job['id']}/sessions")["items"]
    assert session["id"] == ticket["lease"]
