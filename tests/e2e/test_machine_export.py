"""An export on a machine with real worker processes: the first session is sent away, the second one makes it whole."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
from safetensors import safe_open

from benchmarks.lab import Lab
from benchmarks.tiny_job import finished

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_an_export_that_was_handed_over_begins_anew_and_is_whole(tmp_path: Path, lab_with_job: tuple[Lab, str]) -> None:
    server, job = lab_with_job
    made = server.post(f"/jobs/{job}:export", {"format": "merged", "type": "bf16"})["id"]
    server.wait_for(lambda: server.job(made)["state"] == "running", "the first session", 120, 0.05)
    server.post(f"/jobs/{made}:handover", None)
    server.wait_for(lambda: finished(server, made), "the export's end", 240, 0.1)
    sessions = server.get(f"/jobs/{made}/sessions")["items"]
    assert [(each["outcome"], each["first_step"]) for each in sessions] == [("handed_off", 0), ("completed", 0)]
    (export,) = server.get(f"/jobs/{job}/machine-exports")["items"]
    assert (export["id"], export["job"], export["format"], export["state"]) == (made, job, "merged", "succeeded")
    assert export["report"]["check"]["same"] >= 0.98
    model = export["report"]["files"][0]
    path = tmp_path / model["name"]
    path.write_bytes(server.client.get(f"/jobs/{made}/machine-exports/files/{model['name']}").content)
    assert sha256(path.read_bytes()).hexdigest() == model["sha256"]
    with safe_open(path, framework="pt") as weights:
        assert str(weights.get_tensor("model.embed_tokens.weight").dtype) == "torch.bfloat16"
    log = server.client.get(f"/sessions/{sessions[1]['id']}/log").text
    assert "checking every tensor, and the logits of a probe" in log
