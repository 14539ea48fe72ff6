"""A member's token for the Hugging Face hub: kept sealed, used by the server alone, and what machines get in its
place."""

from __future__ import annotations

import base64
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.domain.jobs import Lease
from orchestrator.providers.kaggle.kernel import kernel_source
from orchestrator.services import model_files
from orchestrator.services.dispatch import dispatch, why_waiting
from orchestrator.services.reconcile import reconcile
from tests.emulators.hub import HubEmulator, Repo
from tests.http.http_client import Machine, People
from tests.http.test_evaluations import trained
from tests.services.test_hub import ANN, BOB, FILES, SHARDS

PAGE = "https://huggingface.co/org/gated"


@pytest.fixture
def hub(hub: HubEmulator) -> HubEmulator:
    hub.accounts |= {ANN: "ann-on-the-hub", BOB: "bob-on-the-hub"}
    hub.add(Repo(id="org/gated", files=FILES, gated=True, readers={"ann-on-the-hub"}))
    hub.add(Repo(id="org/open", files=FILES))
    return hub


@pytest.fixture
def app(database_url, make_server, hub):
    """A server that may ask the emulated hub, on both databases."""
    return make_server(database_url, offline=False, hub_endpoint=hub.endpoint)


@pytest.fixture
def sqlite_app(make_server, empty_database, hub):
    return make_server(empty_database("sqlite"), offline=False, hub_endpoint=hub.endpoint)


def put(who: Any, token: str) -> Any:
    return who.call("PUT", "/hub-token", json={"token": token})


def leases_of(api: Any, job: str) -> list[Lease]:
    with api.app.context.uow() as tx:
        return tx.leases.of_job(job)


def started(api: Any, people: People, provider: Any, model: str = "org/gated") -> tuple[dict[str, Any], Machine]:
    job = people.ann.submit(base_model=model)
    return job, Machine.launched(api, provider)


def test_a_token_is_tried_kept_and_shown_to_nobody(api, people):
    """Guard: without `hub_token` among a member's columns it was gone with the answer."""
    assert people.ann.get("/hub-token").json() == {"stored": False, "account": ""}
    assert put(people.ann, f"  {ANN}\n").json() == {"stored": True, "account": "ann-on-the-hub"}
    assert people.ann.get("/hub-token").json() == {"stored": True, "account": "ann-on-the-hub"}
    assert people.bob.get("/hub-token").json() == {"stored": False, "account": ""}
    assert people.admin.get("/hub-token").json() == {"stored": False, "account": ""}
    assert put(people.ann, BOB).json()["account"] == "bob-on-the-hub"
    assert people.ann.call("DELETE", "/hub-token").status_code == 204
    assert people.ann.call("DELETE", "/hub-token").status_code == 204
    assert people.ann.get("/hub-token").json()["stored"] is False


def test_a_token_that_the_hub_does_not_accept_is_not_kept(api1, people, hub):
    put(people.ann, ANN)
    refused = put(people.ann, "hf_made_up")
    assert refused.status_code == 422
    assert "`trainhop hub login`" in refused.json()["detail"]
    assert refused.json()["errors"][0]["pointer"] == "/token"
    for odd in ("hf two words", "hf_\u00e4", "   "):
        assert put(people.ann, odd).status_code == 422
    asked = len(hub.seen)
    assert put(people.ann, "x" * 3_000).status_code == 422
    assert len(hub.seen) == asked
    hub.rules.add("whoami", status=429, headers={"Retry-After": "31"})
    away = put(people.ann, BOB)
    assert (away.status_code, away.headers["retry-after"]) == (503, "31")
    assert people.ann.get("/hub-token").json()["account"] == "ann-on-the-hub"


def test_whoever_is_removed_leaves_no_token_behind(api, people):
    """Guard: without `hub_token = ""` in `remove_member` it stayed in the database for good."""
    put(people.ann, ANN)
    me = people.ann.get("/me").json()["id"]
    assert people.admin.call("DELETE", f"/members/{me}").status_code == 204
    with api.app.context.uow() as tx:
        gone = tx.members.get(me)
    assert gone is not None
    assert gone.hub_token == ""


def test_a_gated_model_is_planned_with_its_owners_token_alone(api1, people, hub):
    """Guard: without `token_of` in `resolve` Ann was refused, too."""
    put(people.ann, ANN)
    put(people.bob, BOB)
    for path in ("/jobs", "/jobs:plan"):
        refused = people.bob.post(path, people.bob.job_file(base_model="org/gated"))
        assert refused.status_code == 422
        assert f"Accept its terms at {PAGE}" in refused.json()["detail"]
        told = people.admin.post(path, people.admin.job_file(base_model="org/gated")).json()["detail"]
        assert "set a token with `trainhop hub login`" in told
        assert people.ann.post(path, people.ann.job_file(base_model="org/gated")).is_success
    commit = hub.repos["model", "org/gated"].commit
    job = people.ann.get("/jobs").json()["items"][0]
    assert people.ann.get(f"/jobs/{job['id']}").json()["spec"]["base_model"] == f"org/gated@{commit}"


def test_a_busy_hub_says_when_to_submit_again(api1, people, hub):
    hub.rules.add("GET /api/models", status=429, headers={"Retry-After": "120"})
    busy = people.ann.post("/jobs", people.ann.job_file(base_model="org/open"))
    assert (busy.status_code, busy.headers["retry-after"]) == (503, "120")


def read(api: Any, grant: dict[str, Any]) -> bytes:
    """The granted file as a machine reads it: the address and the grant's own headers, no token."""
    path = grant["url"].partition("/api/v1/blobs/")[2]
    if path:
        return api.client.get(f"/api/v1/blobs/{path}", headers=grant["headers"]).content
    return httpx.get(grant["url"], headers=grant["headers"], trust_env=False).content


def test_a_machine_reads_a_gated_model_without_any_token(api, people, provider, hub):
    """Guards: without `granted` in `assignment` there were no files; without `sweep` they stayed in the store for
    good."""
    put(people.ann, ANN)
    job, machine = started(api, people, provider)
    assert machine.start().status_code == 200
    grants = {grant["key"]: grant for grant in machine.assignment["model"]}
    assert set(grants) >= {"model/config.json", "model/tokenizer.json", *(f"model/{name}" for name in SHARDS)}
    before = len(hub.seen)
    for key, grant in grants.items():
        data = read(api, grant)
        assert data == FILES[key.removeprefix("model/")]
        assert grant["size"] == len(data)
        assert grant["kind"] == "model"
    assert {seen.authorization for seen in hub.seen[before:]} == {None}
    assert machine.start().status_code == 200
    (lease,) = leases_of(api, job["id"])
    store = api.app.context.stores.local()
    assert store.keys(model_files.prefix(lease))
    people.ann.post(f"/jobs/{job['id']}:cancel")
    assert machine.say("release", machine.said("release", step=0, reason="cancelled")).status_code == 204
    provider.liveness.clear()
    reconcile(api.app.context)
    assert store.keys(model_files.prefix(lease)) == []


def test_a_gated_judge_is_handed_out_beside_the_base_model(api1, people, provider, hub, tmp_path):
    """Guards: without the judge in `_look_up` the machine could not fetch it; without the member's token it was
    refused at the submit."""
    put(people.ann, ANN)
    hub.add(Repo(id="org/judge", files=FILES, gated=True, readers={"ann-on-the-hub"}))
    job = trained(api1, provider, people, tmp_path, base_model="org/open")
    made = people.ann.post(f"/jobs/{job}:evaluate", {"max_prompts": 12, "judge": {"model": "org/judge"}})
    assert made.status_code == 201, made.text
    assert made.json()["spec"]["evaluation"]["judge"]["model"] == f"org/judge@{hub.repos['model', 'org/judge'].commit}"
    machine = Machine.launched(api1, provider)
    assert machine.start().status_code == 200
    assert machine.assignment["model"] == []
    grants = {grant["key"]: grant for grant in machine.assignment["judge"]}
    assert set(grants) >= {"judge/config.json", "judge/chat_template.jinja", *(f"judge/{name}" for name in SHARDS)}
    for key, grant in grants.items():
        assert read(api1, grant) == FILES[key.removeprefix("judge/")]


def test_a_worker_on_this_computer_reads_small_files_where_they_lie(api1, people, provider, hub):
    put(people.ann, ANN)
    provider.capabilities = type(provider.capabilities)(provider="local", shares_disk=True)
    _, machine = started(api1, people, provider)
    assert machine.start().status_code == 200
    (config,) = [grant for grant in machine.assignment["model"] if grant["key"] == "model/config.json"]
    assert Path(config["path"]).read_bytes() == FILES["config.json"]


def test_a_model_for_everybody_is_left_to_the_machine(api1, people, provider, hub):
    """Also while the hub is away, for whoever has a token and for whoever has none."""
    _, machine = started(api1, people, provider, "org/open")
    asked = len(hub.seen)
    assert machine.start().json()["model"] == []
    assert len(hub.seen) == asked
    put(people.ann, ANN)
    _, machine = started(api1, people, provider, "org/open")
    hub.rules.add("GET /api/models", status=503)
    assert machine.start().json()["model"] == []


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda hub: hub.repos["model", "org/gated"].readers.clear(), f"Accept its terms at {PAGE} and try again"),
        (lambda hub: hub.accounts.clear(), "does not accept your token"),
        (lambda hub: hub.repos.clear(), "Check the id and revision"),
    ],
)
def test_a_refusal_of_the_hub_is_on_the_job_and_retried_when_put_right(api, people, provider, hub, break_it, words):
    """Guard: without `_end` the machine left without a word, and four more were started after it."""
    put(people.ann, ANN)
    job, machine = started(api, people, provider)
    accounts, readers, repos = dict(hub.accounts), {"ann-on-the-hub"}, dict(hub.repos)
    break_it(hub)
    refused = machine.start()
    assert refused.status_code == 409
    now = people.ann.get(f"/jobs/{job['id']}").json()
    assert (now["state"], now["end_reason"]) == ("failed", "failed")
    assert words in now["message"]
    assert words in refused.json()["detail"]
    assert [lease.state for lease in leases_of(api, job["id"])] == ["expired"]
    assert machine.start().status_code == 409
    hub.accounts |= accounts
    hub.repos |= repos
    hub.repos["model", "org/gated"].readers |= readers
    assert people.ann.post(f"/jobs/{job['id']}:retry").status_code == 200
    assert Machine.launched(api, provider).start().status_code == 200


def test_a_hub_that_is_away_is_waited_for_and_costs_the_job_nothing(api, people, provider, hub, clock):
    """Guards: with `counts` left at its default the job was a loss nearer to its end; without `PATIENCE_S` a GPU waited
    on."""
    put(people.ann, ANN)
    job, machine = started(api, people, provider)
    hub.rules.add("GET /api/models", times=0, status=503, headers={"Retry-After": "9"})
    for _ in range(2):
        away = machine.start()
        assert (away.status_code, away.headers["retry-after"]) == (503, "9")
        clock.tick(20)
    hub.rules.clear()
    assert machine.start().status_code == 200

    machine.say("release", machine.said("release", step=0, reason="drained"))
    machine = Machine.launched(api, provider)
    hub.rules.add("GET /api/models", times=0, status=503)
    assert machine.start().status_code == 503
    clock.tick(model_files.PATIENCE_S)
    assert machine.start().status_code == 409
    with api.app.context.uow() as tx:
        found = tx.jobs.get(job["id"])
    assert found is not None
    assert (found.state, found.losses_in_a_row, found.failures_in_a_row) == ("queued", 0, 0)
    assert found.not_before == clock.now() + model_files.REST_S
    waiting = why_waiting(api.app.context, job["id"])
    assert waiting is not None
    assert "Hugging Face is busy" in waiting.reason
    assert dispatch(api.app.context) == 0
    hub.rules.clear()
    clock.tick(model_files.REST_S)
    assert Machine.launched(api, provider).start().status_code == 200


@pytest.fixture
def offline(people, cloud) -> Any:
    """Ann's account whose machines cannot call."""
    people.ann.post("/accounts", {"provider": "cloud", "credentials": "x", "name": "anns"})
    return cloud


def submit_offline(people: People) -> dict[str, Any]:
    return people.ann.submit(base_model="org/gated", placement={"providers": ["cloud"]})


def test_a_machine_that_cannot_call_is_brought_the_small_files(api, people, offline, hub):
    """Guard: without `staged` in `offline_bundle` it was started with nothing, and would have asked the hub as
    nobody."""
    put(people.ann, ANN)
    submit_offline(people)
    dispatch(api.app.context)
    (request,) = offline.launched
    grants = {grant.key: grant for grant in request.assignment.model}
    assert {"model/config.json", *(f"model/{name}" for name in SHARDS)} <= grants.keys()
    for key, grant in grants.items():
        name = key.removeprefix("model/")
        brought = key in request.inputs
        assert brought is (name not in SHARDS)
        data = b"".join(request.inputs[key]()) if brought else httpx.get(grant.url, trust_env=False).content
        assert data == FILES[name]
        assert b"".join(request.inputs[key]()) == data if brought else True  # a driver may read it again


def test_a_machine_that_cannot_call_is_not_started_in_vain(api, people, offline, hub, clock):
    """Guard: without `except ConflictError` in `_launch` the round ended there, and nobody settled the lease."""
    put(people.ann, ANN)
    job = submit_offline(people)
    hub.rules.add("HEAD /org/gated", status=502)
    dispatch(api.app.context)
    now = people.ann.get(f"/jobs/{job['id']}").json()
    assert (now["state"], offline.launched) == ("queued", [])
    assert "Hugging Face is busy" in now["waiting"]["reason"]
    clock.tick(model_files.REST_S)
    hub.repos["model", "org/gated"].readers.clear()
    dispatch(api.app.context)
    now = people.ann.get(f"/jobs/{job['id']}").json()
    assert (now["state"], offline.launched) == ("failed", [])
    assert f"Accept its terms at {PAGE} and try again" in now["message"]
    assert all(lease.collected_at for lease in leases_of(api, job["id"]))


def test_a_token_that_cannot_be_opened_any_more_is_asked_for_again(api1, people):
    """Guard: without `except VaultError` every submit of hers ended in a bug's words."""
    put(people.ann, ANN)
    me = people.ann.get("/me").json()["id"]
    with api1.app.context.uow() as tx:
        (member,) = tx.members.get_for_update(me)
        member.hub_token = "sealed with another key"
        tx.members.save(member)
    lost = people.ann.post("/jobs", people.ann.job_file(base_model="org/open"))
    assert lost.status_code == 422
    assert "Set it again with `trainhop hub login`" in lost.json()["detail"]
    assert people.ann.get("/hub-token").status_code == 422
    assert put(people.ann, ANN).status_code == 200
    assert people.ann.submit(base_model="org/open")


def test_the_token_is_nowhere_but_in_the_vault(api1, people, provider, offline, hub, tmp_path, caplog, capfd):
    """Guards: with the token kept as it is, the database held it; with grants read with it, the assignment did.

    Everything that a session leaves: database, store, logs, answers, what a machine is given, the script for Kaggle.
    """
    caplog.set_level(logging.INFO)
    answers = [put(people.ann, ANN).text]
    people.ann.submit(base_model="org/gated", placement={"providers": ["local"]})
    machine = Machine.launched(api1, provider)
    answers.append(machine.start().text)
    submit_offline(people)
    dispatch(api1.app.context)
    (request,) = offline.launched
    answers += [request.assignment.model_dump_json(), kernel_source(request), repr(request)]
    hub.repos["model", "org/gated"].readers.clear()
    answers += [people.ann.get(path).text for path in ("/hub-token", "/me", "/jobs", "/accounts", "/events", "/tokens")]
    answers.append(people.admin.get("/members").text)
    answers.append(put(people.bob, ANN + "-wrong").text)
    with api1.app.context.uow() as tx:
        answers += [repr(member) for member in tx.members.all()]
    answers += [caplog.text, *capfd.readouterr()]
    api1.app.engine.dispose()
    left = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"SQLite format" in data for data in left)
    encoded = base64.b64encode(ANN.encode()).decode().rstrip("=")[:-1]
    for secret in (ANN, encoded):
        assert not [text[:200] for text in answers if secret in text]
        assert not [data[:60] for data in left if secret.encode() in data]
    signed = [url for url in hub.signed if url in caplog.text]
    assert hub.signed
    assert signed == []  # an address is a permission
