"""The example driver: a distribution of its own, installed beside Trainhop, on which a job is trained."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lab import Lab, lab
from benchmarks.tiny_job import STEPS, finished, job_file, write_rows
from benchmarks.tiny_model import make_tiny_llama

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "driver"
TOKEN = "workshop-canary-5e1f"
PATIENCE_S = 300.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the example, installed as its users install it but without a network."""
    folder = tmp_path_factory.mktemp("driver")
    source = shutil.copytree(EXAMPLE, folder / "source")
    offline = ("--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "--quiet")
    command = [sys.executable, "-m", "pip", "install", *offline, "--target", str(folder / "site"), str(source)]
    subprocess.run(command, check=True)
    return folder / "site"


def _server(folder: Path, model: Path, tokens: Path) -> Any:
    return lab(
        folder,
        allowed_folders=json.dumps([str(model.parent)]),
        offline=True,
        local_slots=0,
        report_every_s=0.5,
        reconcile_s=0.5,
        workshop_tokens=tokens,
    )


def _account(server: Lab, credentials: str, **config: Any) -> dict[str, Any]:
    return server.post("/accounts", {"provider": "workshop", "credentials": credentials, "config": config})


def test_a_job_is_trained_by_the_driver_of_another_distribution(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: with the driver made without its settings no token was known."""
    monkeypatch.setenv("PYTHONPATH", str(site))
    model, rows = make_tiny_llama(tmp_path / "models" / "tiny"), write_rows(tmp_path / "rows.jsonl")
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ann {hashlib.sha256(TOKEN.encode()).hexdigest()}\n")
    with _server(tmp_path / "lab", model, tokens) as server:
        (kind,) = [p for p in server.get("/providers")["items"] if p["name"] == "workshop"]
        assert (kind["title"], kind["problem"], kind["personal"]) == ("Workshop", "", True)
        assert "niceness" in kind["settings"]["properties"]

        refused = server.client.post("/accounts", json={"provider": "workshop"})
        assert "The token that the operator gave you." in refused.text
        refused = server.client.post(
            "/accounts", json={"provider": "workshop", "credentials": TOKEN, "config": {"niceness": 40}}
        )
        assert (refused.status_code, "niceness" in refused.text) == (422, True)

        refused = server.client.post("/accounts", json={"provider": "workshop", "credentials": "a-wrong-token"})
        assert (refused.status_code, "does not know this token" in refused.text) == (422, True)
        account = _account(server, TOKEN, niceness=5)
        assert server.post(f"/accounts/{account['id']}:check")["words"] == "signed in at the workshop as ann"

        asked = job_file(model, server.upload(rows), "lora") | {"placement": {"providers": ["workshop"]}}
        job = server.post("/jobs", asked)["id"]
        Lab.wait_for(lambda: finished(server, job), "the job's end", PATIENCE_S, 0.2)
        (session,) = server.get(f"/jobs/{job}/sessions")["items"]
        assert (session["provider"], session["outcome"], session["last_step"]) == ("workshop", "completed", STEPS)
        assert f"step {STEPS}" in server.client.get(f"/sessions/{session['id']}/log").text
    folders = list((tmp_path / "lab" / "data" / "drivers" / "workshop").iterdir())
    assert [(f.name, f.stat().st_mode & 0o077) for f in folders] == [(session["id"], 0)]
    assert not [p for p in (tmp_path / "lab").rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]


def test_the_example_is_small_and_imports_what_a_driver_may(site: Path) -> None:
    source = (EXAMPLE / "trainhop_workshop.py").read_text()
    assert len(source.splitlines()) < 150
    imported = {line for line in source.splitlines() if line.startswith(("from orchestrator", "import orchestrator"))}
    assert imported == {"from orchestrator.ports import providers as port"}
    assert (site / "trainhop_workshop.py").read_text() == source
