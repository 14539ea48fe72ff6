"""Pushes over HTTP: what is asked of the hub at submit, who may push, and what the answers say."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from orchestrator.services.pushing import push_due, work
from tests.emulators.hub import HubEmulator, Repo
from tests.helpers.pushes import WEIGHTS, archive
from tests.http.http_client import Machine
from tests.services.test_hub import ANN, BOB, FILES

REPO = "ann-on-the-hub/trail-guide"


@pytest.fixture
def hub(hub: HubEmulator) -> HubEmulator:
    hub.accounts |= {ANN: "ann-on-the-hub", BOB: "bob-on-the-hub"}
    hub.add(Repo(id="org/open", files=FILES))
    return hub


@pytest.fixture
def app(database_url, make_server, hub):
    """A server that may ask the emulated hub, on both databases."""
    return make_server(database_url, offline=False, hub_endpoint=hub.endpoint)


@pytest.fixture
def sqlite_app(make_server, empty_database, hub):
    return make_server(empty_database("sqlite"), offline=False, hub_endpoint=hub.endpoint)


def log_in(who: Any, token: str = ANN) -> None:
    assert who.call("PUT", "/hub-token", json={"token": token}).is_success


def finished(api, people, provider, folder, **changes: Any) -> str:
    """A job of ann's that has succeeded, with a real archive."""
    job = people.ann.submit(base_model="org/open", **changes)["id"]
    machine = Machine.launched(api, provider)
    assert machine.start().status_code == 200
    assert "hub" not in json.dumps(machine.assignment["spec"])
    assert machine.save(10, folder).json()["committed"]
    assert machine.finish(10, archive(), hashlib.sha256(WEIGHTS).hexdigest()).status_code == 204
    return job


def test_the_push_of_a_job_file_from_submit_to_commit(api, people, provider, hub, tmp_path):
    """By the process that the server starts. Guard: with the path of a file for the client, it uploaded by Xet."""
    asked = {"base_model": "org/open", "hub_model_id": REPO}
    refused = people.ann.post("/jobs", people.ann.job_file(**asked))
    assert refused.status_code == 422
    assert "trainhop hub login" in refused.json()["detail"]
    assert refused.json()["errors"][0]["pointer"] == "/hub_model_id"
    log_in(people.ann)
    hub.writes.roles[ANN] = "read"
    for path in ("/jobs", "/jobs:plan"):
        assert "can only read" in people.ann.post(path, people.ann.job_file(**asked)).json()["detail"]
    hub.writes.roles.clear()
    for wrong in ("no-owner", "a/b/c", "ann/..", "ann/x.git", "a" * 200, "ann/-x"):
        answer = people.ann.post("/jobs", people.ann.job_file(**asked | {"hub_model_id": wrong}))
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/hub_model_id"), wrong
    job = finished(api, people, provider, tmp_path, hub_model_id=REPO)
    shown = people.ann.get(f"/jobs/{job}").json()
    assert (shown["state"], shown["spec"]["hub_model_id"]) == ("succeeded", REPO)
    (push,) = people.ann.get(f"/jobs/{job}/pushes").json()["items"]
    assert (push["state"], push["repo"], push["is_public"], push["commit"]) == ("running", REPO, False, None)
    work(api.app.pushing, push["id"])
    done = people.ann.get(f"/pushes/{push['id']}").json()
    assert (done["state"], done["made_commit"], done["reason"]) == ("pushed", True, "")
    repo = hub.repos["model", REPO]
    assert (repo.private, repo.commit, len(hub.writes.commits(REPO))) == (True, done["commit"], 1)
    kinds = [event["kind"] for event in people.ann.get(f"/jobs/{job}/events").json()["items"]]
    assert kinds[-2:] == ["job.pushed", "job.pushing"] or kinds[-2:] == ["job.pushing", "job.pushed"]
    assert ANN not in json.dumps([shown, push, done])


def test_a_push_has_the_files_that_the_command_saves(api1, people, provider, hub, tmp_path):
    log_in(people.ann)
    job = finished(api1, people, provider, tmp_path)
    made = people.ann.post(f"/jobs/{job}/pushes", {"repo": REPO}, headers={"Idempotency-Key": "k"})
    assert made.status_code == 201, made.text
    push_due(api1.app.pushing)
    api1.app.pushing.running.gather({people.ann.get("/me").json()["id"]: lambda: None}, 60.0, lambda: None)
    assert people.ann.get(f"/pushes/{made.json()['id']}").json()["state"] == "pushed"
    again = people.ann.post(f"/jobs/{job}/pushes", {"repo": REPO}, headers={"Idempotency-Key": "k"})
    assert (again.status_code, again.json()["id"]) == (201, made.json()["id"])
    pushed = dict(hub.repos["model", REPO].files)
    pushed.pop(".gitattributes")
    assert pushed["README.md"].decode() == people.ann.get(f"/jobs/{job}/card").text
    assert json.loads(pushed["trainhop-provenance.json"]) == people.ann.get(f"/jobs/{job}/provenance").json()
    assert set(pushed) == {"README.md", "trainhop-provenance.json", "adapter_config.json", "tokenizer.json"} | {
        "adapter_model.safetensors"
    }


def test_only_the_owner_pushes(api1, people, provider, hub, tmp_path):
    """Guard: without the owner's check an admin pushed Ann's adapter to an account of their own."""
    log_in(people.ann)
    job = finished(api1, people, provider, tmp_path)
    log_in(people.admin, BOB)
    assert people.admin.post(f"/jobs/{job}/pushes", {"repo": "bob-on-the-hub/x"}).status_code == 403
    assert people.bob.post(f"/jobs/{job}/pushes", {"repo": REPO}).status_code == 404
    nameless = people.ann.post(f"/jobs/{job}/pushes", {})
    assert (nameless.status_code, nameless.json()["errors"][0]["pointer"]) == (422, "/repo")
    push = people.ann.post(f"/jobs/{job}/pushes", {"repo": REPO}).json()["id"]
    assert people.bob.get(f"/pushes/{push}").status_code == 404
    assert people.admin.get(f"/pushes/{push}").json()["repo"] == REPO
    assert people.admin.get(f"/jobs/{job}/pushes").json()["items"][0]["id"] == push
    deleting = people.ann.call("DELETE", f"/jobs/{job}")
    assert (deleting.status_code, deleting.headers["content-type"]) == (409, "application/problem+json")
    hub.rules.add("whoami", status=429, headers={"Retry-After": "33"})
    busy = people.ann.post(f"/jobs/{job}/pushes", {"repo": REPO})
    assert (busy.status_code, busy.headers["retry-after"]) == (503, "33")
