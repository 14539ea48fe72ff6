"""A chat on a machine with a real worker process: it is asked before it runs, answers, and is ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.lab import Lab

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_machine_answers_with_base_and_adapter_and_is_free_again(
    tmp_path: Path, lab_with_job: tuple[Lab, str]
) -> None:
    """Nothing of the conversation is on the disk of server or machine, which is the same here."""
    server, job = lab_with_job
    session = server.post(f"/jobs/{job}:chat", {"minutes": 10})["id"]
    body = {"question": "canary of a question", "max_tokens": 8, "on_machine": True}
    with server.client.stream("POST", f"/jobs/{job}/chat", json=body, timeout=180) as answer:
        assert answer.status_code == 200
        events = [json.loads(line[5:]) for line in answer.iter_lines() if line.startswith("data:")]
    kinds = [event["kind"] for event in events]
    assert (kinds[0], kinds[-1]) == ("loading", "done")
    ready = kinds.index("ready")
    assert set(kinds[:ready]) == {"loading"}
    assert events[ready]["text"].endswith(" on CPU")
    assert {event["arm"] for event in events if event["kind"] == "end"} == {"base", "adapter"}
    server.post(f"/jobs/{session}:cancel")
    server.wait_for(lambda: server.job(session)["state"] == "cancelled", "the end of the session", 60, 0.1)
    server.wait_for(lambda: not server.workers(), "a free machine", 60, 0.1)
    written = [path for path in tmp_path.rglob("*") if path.is_file() and b"canary of a" in path.read_bytes()]
    assert written == []
