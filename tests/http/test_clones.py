"""Cloning from a checkpoint over HTTP: what is answered, who may, and a file that lies in Drive."""

import hashlib

import pytest

from orchestrator.ports.providers import Liveness
from orchestrator.services.reconcile import reconcile
from tests.http.http_client import Machine
from tests.http.test_stores import use


@pytest.fixture
def app(database_url, make_server, drive):
    return make_server(database_url, drivers={"drive": {"endpoint": drive.url}})


def test_a_clone_begins_with_a_checkpoint_in_drive(api, people, provider, drive, tmp_path):
    """Guard: without `is_in_use` in `sweep_strays`, clearing up after the original's session took the file away."""
    use(people, drive)
    job = people.ann.submit(checkpoint={"keep": 1})["id"]
    original = Machine.launched(api, provider)
    original.start()
    original.save(4, tmp_path)
    sha256, clone = original.head, f"/jobs/{job}:clone"
    made = people.ann.post(clone, {"max_steps": 12, "name": "on"}, params={"from": sha256})
    assert made.status_code == 201, made.text
    assert (made.json()["cloned_from"], made.json()["first_step"], made.json()["step"]) == (job, 4, 4)
    assert made.json()["head"]["sha256"] == sha256

    refused = people.ann.post(clone, {"seed": 7, "lora_alpha": 8}, params={"from": sha256})
    assert refused.status_code == 422
    assert {e["pointer"] for e in refused.json()["errors"]} == {"/seed", "/lora_alpha"}
    assert "cannot start from the checkpoint of step 4" in refused.json()["detail"]
    assert people.bob.post(clone, {}, params={"from": sha256}).status_code == 404
    assert people.ann.post(clone, {}, params={"from": "0" * 64}).status_code == 404
    assert people.ann.post(clone, {}, params={"from": "head"}).status_code == 422

    for step in (7, 8):
        original.save(step, tmp_path)
    assert people.ann.post(clone, {}, params={"from": sha256}).status_code == 409
    original.say("release", original.said("release", step=8, reason="deadline"))
    people.ann.post(f"/jobs/{job}:cancel")
    provider.liveness[original.lease] = Liveness.ENDED
    reconcile(api.app.context)

    copy = Machine.launched(api, provider)
    started = copy.start().json()
    assert started["origin"] == {"job": job, "fence": 1, "step": 4}
    grant = started["resume"]
    path = "/api/v1" + grant["url"].partition("/api/v1")[2]
    read = api.client.get(path, headers=grant["headers"])
    assert hashlib.sha256(read.content).hexdigest() == sha256
    assert copy.save(12, tmp_path).json()["committed"]
    assert copy.finish(12).status_code == 204
    assert people.ann.get(f"/jobs/{made.json()['id']}").json()["state"] == "succeeded"
