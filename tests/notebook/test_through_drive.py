"""Notebooks that cannot call the server: through documents in a Drive, as the person who runs them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lab import Lab, lab
from benchmarks.tiny_job import job_file
from tests.emulators.drive import Drive

PATIENCE_S = 180

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

COLAB = """
import google.auth, google.oauth2.credentials, sys, types
made = {user!r}
made.pop("type")
def sign_in(scopes):
    return google.oauth2.credentials.Credentials(None, **made), None
google.auth.default = sign_in
sys.modules["google.colab"] = module = types.ModuleType("google.colab")
# Once signed in, this is no Colab any more: its rule that a GPU is needed would end the test.
module.auth = types.SimpleNamespace(authenticate_user=lambda: sys.modules.pop("google.colab"))
"""
"""Colab's own sign-in, as far as a cell sees it; the tokens are the emulator's and are really asked for and
refreshed."""


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Drive]:
    with Drive(tmp_path / "drive") as emulator:
        yield emulator


@pytest.fixture
def server(tmp_path: Path, model_and_rows: tuple[Path, Path], drive: Drive) -> Iterator[Lab]:
    settings = {"allowed_folders": json.dumps([str(model_and_rows[0].parent)]), "offline": True, "report_every_s": 1}
    times = {"lease_s": 30, "reconcile_s": 0.2, "letters_s": 0.3}
    with lab(tmp_path / "lab", **settings, **times, local_slots=0, drive_endpoint=drive.url) as running:
        credentials = json.dumps(drive.authorized_user())
        answer = running.client.put("/stores/drive", json={"credentials": credentials})
        assert answer.is_success, answer.text
        yield running


def submit(server: Lab, model_and_rows: tuple[Path, Path], **changes: Any) -> str:
    return server.post("/jobs", job_file(model_and_rows[0], server.upload(model_and_rows[1]), "lora") | changes)["id"]


def letters(drive: Drive) -> str:
    """What notebooks have written down for the server."""
    return "".join(drive.bytes_of(f).decode() for f in drive.files() if f.title.endswith("up.json"))


def colab(drive: Drive) -> str:
    return COLAB.format(user=drive.authorized_user())


def test_a_job_goes_through_two_notebooks_and_a_server_that_was_off(
    server: Lab, model_and_rows: tuple[Path, Path], drive: Drive, tab: Any
) -> None:
    """The first is drained by its owner's pause; the second finishes while the server is off, which then adopts it
    all."""
    ident = submit(server, model_and_rows, max_steps=250)
    made = server.post(f"/jobs/{ident}:notebook")
    assert "Sign in to Google as somebody@example.com" in made["note"]
    first = tab(made, colab(drive))
    server.wait_for(lambda: server.job(ident)["step"] >= 2, "the first steps", PATIENCE_S, 0.2)
    assert "another tab" in tab(made, colab(drive)).refused
    server.post(f"/jobs/{ident}:pause")
    server.wait_for(lambda: server.job(ident)["state"] == "paused", "the pause", PATIENCE_S, 0.2)
    head = server.job(ident)["head"]["step"]
    assert f"Paused at step {head}. The checkpoint is saved" in first.said
    server.post(f"/jobs/{ident}:resume")
    second = tab(server.post(f"/jobs/{ident}:notebook"), colab(drive))
    server.wait_for(lambda: server.job(ident)["step"] > head, "steps of the second notebook", PATIENCE_S, 0.2)
    server.kill()
    server.wait_for(lambda: "finish" in letters(drive), "its end", PATIENCE_S, 0.2)
    server.up()
    server.wait_for(lambda: server.job(ident)["state"] == "succeeded", "the end")
    assert "step 250 of 250" in second.said
    assert server.job(ident)["steps_repeated"] == 0
    sessions = server.get(f"/jobs/{ident}/sessions")["items"]
    assert {(s["provider"], s["outcome"]) for s in sessions} == {("colab", "handed_off"), ("colab", "completed")}
    assert "thl_" not in json.dumps(made)
