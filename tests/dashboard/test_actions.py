"""What the dashboard asks of jobs and machines, over REST and from the command line."""

from __future__ import annotations

from orchestrator.services.reconcile import reconcile
from tests.cli.conftest import Shell, elsewhere, serving, trainhop  # noqa: F401  fixtures
from tests.http.http_client import Machine


def test_a_hand_over_moves_the_job_to_the_next_machine(api, people, provider, tmp_path):
    """Guard: without `lease.to(DRAINING)` the worker was told to continue, and nothing ever moved."""
    job = people.ann.submit()["id"]
    refused = people.ann.post(f"/jobs/{job}:handover")
    assert refused.status_code == 409
    first = Machine.launched(api, provider)
    first.start()
    first.report(3)
    assert people.bob.post(f"/jobs/{job}:handover").status_code == 404
    assert people.ann.post(f"/jobs/{job}:handover").status_code == 200
    assert people.ann.post(f"/jobs/{job}:handover").status_code == 200
    assert first.report(4).json() == {"action": "drain", "reason": "drained"}
    first.save(5, tmp_path)
    assert first.say("release", first.said("release", step=5, reason="drained")).status_code == 204
    reconcile(api.app.context)
    second = Machine.launched(api, provider)
    assert second.start().json()["resume_step"] == 5
    kinds = [e["kind"] for e in people.ann.get(f"/jobs/{job}/events").json()["items"]]
    assert kinds.count("job.handover_requested") == 1
    assert second.report(6).json()["action"] == "continue"


def test_a_link_and_a_channel_from_the_command_line(trainhop: Shell):  # noqa: F811
    url = trainhop.json("open")["url"]
    assert "/login/" in url
    made = trainhop.json("notifications", "add", "http://127.0.0.1:9/hook", "--topic", "failed")
    ident = made["channel"]["id"]
    assert made["secret"].startswith("whsec_")
    assert made["channel"]["topics"] == ["failed"]
    assert ident in trainhop("notifications", "ls").stdout
    tried = trainhop("notifications", "test", ident, code=1)
    assert tried.stdout.startswith("failed: no answer")
    assert "Trainhop: test" in trainhop("notifications", "log", ident).stdout
    trainhop("notifications", "rm", ident)
    assert trainhop.json("notifications", "ls") == []


def test_a_datasets_preview_over_rest(api, people):
    data = people.ann.upload(b'{"prompt": "a", "completion": "b"}\n' * 3).json()["sha256"]
    found = people.ann.get(f"/datasets/{data}/preview").json()
    assert (found["type"], found["rows"], found["repeated"], found["exact"]) == ("prompt_completion", 3, 2, False)
    assert found["shown"][0][1] == {"role": "completion", "text": "b", "trained": True, "cut": 0}
    assert people.ann.get("/datasets/" + "0" * 64 + "/preview").status_code == 404
