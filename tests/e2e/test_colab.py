"""A job on paid Colab as the product does it: a server that nobody can call, Colab's official client, a Drive for
checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.lab import Lab, lab
from benchmarks.tiny_job import job_file, write_rows
from benchmarks.tiny_model import make_tiny_llama
from tests.emulators.colab import Colab
from tests.emulators.drive import Drive

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PATIENCE_S = 180.0
STEPS = 140


def test_a_job_is_trained_over_two_machines_and_none_is_kept(colab_python: str, tmp_path: Path) -> None:
    """The first machine is taken away in the middle; the second goes on from the checkpoint in the Drive."""
    model, rows = make_tiny_llama(tmp_path / "inputs" / "model"), write_rows(tmp_path / "inputs" / "rows.jsonl")
    with (
        Drive(tmp_path / "drive") as drive,
        Colab(tmp_path / "colab", python=colab_python) as colab,
        lab(
            tmp_path / "lab",
            allowed_folders=json.dumps([str(model.parent)]),
            offline=True,
            local_slots=0,
            report_every_s=0.5,
            reconcile_s=4,  # each look at Colab starts its client
            drive_endpoint=drive.url,
            colab_endpoint=colab.endpoint,
            colab_python=colab_python,
        ) as server,
    ):
        server.put("/stores/drive", {"credentials": json.dumps(drive.authorized_user())})
        config = {"mode": "cli", "accelerator": "none"}
        account = server.post(
            "/accounts", {"provider": "colab", "config": config, "credentials": json.dumps(colab.authorized_user())}
        )
        assert "100.00 compute units left" in server.post(f"/accounts/{account['id']}:check")["words"]
        # Uploads are opened in advance, and a long session would save but rarely.
        short = {"placement": {"max_session_s": 200}}
        asked = job_file(model, server.upload(rows), "lora") | short | {"max_steps": STEPS}
        job = server.post("/jobs", asked)["id"]
        Lab.wait_for(lambda: server.job(job)["head"], "a checkpoint in the Drive", PATIENCE_S, 0.1)
        colab.vanish(next(iter(colab.machines)))
        Lab.wait_for(lambda: server.job(job)["state"] == "succeeded", "the job's end", PATIENCE_S, 0.2)
        Lab.wait_for(lambda: not colab.machines, "the last machine to be given back", PATIENCE_S, 0.1)
        first, second = sorted(server.get(f"/jobs/{job}/sessions")["items"], key=lambda s: s["id"])
        assert (first["outcome"], first["detail"]) == ("lost", "Colab has taken the machine away")
        assert (second["outcome"], second["provider"], second["last_step"]) == ("completed", "colab", STEPS)
        assert second["first_step"] > 0
        assert f"step {STEPS}" in server.client.get(f"/sessions/{second['id']}/log").text
        assert len(colab.taken) == 2
    hidden = [secret.encode() for secret in (colab.tokens.client_secret, *colab.tokens.refresh_tokens)]
    files = [p for folder in ("lab", "colab") for p in (tmp_path / folder).rglob("*") if p.is_file()]
    assert not any(secret in p.read_bytes() for secret in hidden for p in files)
