"""What each noun's routes answer, idempotency and paging."""

import dataclasses
import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator.adapters.database.queries import Queries
from tests.http.http_client import ROWS, Machine


def test_the_same_key_makes_one_job(api, people):
    """Guard: without `_earlier` in `jobs.submit` each repetition was a 409 and never the first answer."""
    spec, headers = people.ann.job_file(), {"Idempotency-Key": "k1"}
    first = people.ann.post("/jobs", spec, headers=headers)
    again = people.ann.post("/jobs", spec, headers=headers)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json()["id"] == again.json()["id"]
    assert first.headers["location"] == again.headers["location"] == f"/api/v1/jobs/{first.json()['id']}"
    assert people.ann.post("/jobs", spec | {"seed": 1}, headers=headers).status_code == 409
    assert people.bob.post("/jobs", people.bob.job_file(), headers=headers).json()["id"] != first.json()["id"]
    with ThreadPoolExecutor(8) as pool:
        both = list(pool.map(lambda _: people.ann.post("/jobs", spec, headers={"Idempotency-Key": "k2"}), range(8)))
    assert {a.status_code for a in both} <= {201, 409}
    assert len({a.json()["id"] for a in both if a.status_code == 201}) == 1
    assert len(people.ann.get("/jobs").json()["items"]) == 2


def test_pages_neither_repeat_nor_skip_while_jobs_arrive(api, people, clock):
    spec = people.ann.job_file()
    for _ in range(7):
        clock.tick(1)
        people.ann.post("/jobs", spec)
    before = [j["id"] for j in people.ann.get("/jobs").json()["items"]]
    seen, cursor = [], None
    while True:
        page = people.ann.get("/jobs", params={"limit": 3} | ({"cursor": cursor} if cursor else {})).json()
        seen += [j["id"] for j in page["items"]]
        clock.tick(1)
        people.ann.post("/jobs", spec)
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == before == sorted(before, reverse=True)


def test_filters(api, people, clock, provider):
    spec = people.ann.job_file()
    for name in ("Alpha", "beta_1", "betaX1", "100%"):
        clock.tick(1)
        people.ann.post("/jobs", spec | {"name": name})
    paused = people.ann.get("/jobs?name=alpha").json()["items"][0]
    people.ann.post(f"/jobs/{paused['id']}:pause")

    def names(query):
        return [j["name"] for j in people.ann.get(f"/jobs?{query}").json()["items"]]

    assert names("state=paused") == ["Alpha"]
    assert names("state=queued&name=BETA") == ["betaX1", "beta_1"]
    assert names("name=beta_") == ["beta_1"]
    assert names("name=%25") == ["100%"]
    assert [j["name"] for j in people.admin.get("/jobs?member=ann&state=paused").json()["items"]] == ["Alpha"]
    assert people.admin.get("/jobs?member=nobody").json() == {"items": [], "next": None}
    state = api.client.app.state
    state.server = dataclasses.replace(state.server, queries=Queries(api.app.engine, scanned_per_page=2))
    page = people.ann.get("/jobs?name=alpha").json()
    assert page["items"] == []
    rest = people.ann.get("/jobs", params={"name": "alpha", "cursor": page["next"]}).json()
    assert [j["name"] for j in rest["items"]] == ["Alpha"]


def test_a_page_costs_a_fixed_number_of_statements(sqlite_app, api1, provider, clock):
    """Guard: with sessions read per job the second count was larger."""
    from sqlalchemy import event

    counted = []
    event.listen(sqlite_app.engine, "before_cursor_execute", lambda *args: counted.append(args[2]))
    spec = api1.admin.job_file()

    def cost():
        counted.clear()
        assert api1.admin.get("/jobs").status_code == 200
        return len(counted)

    api1.admin.post("/jobs", spec)
    Machine.launched(api1, provider).start()
    few = cost()
    for _ in range(12):
        clock.tick(1)
        api1.admin.post("/jobs", spec)
    assert cost() == few <= 4


def test_verbs_and_a_clone(api, people):
    job = people.ann.submit()
    path = f"/jobs/{job['id']}"
    assert people.ann.post(f"{path}:pause").json()["state"] == "paused"
    assert people.ann.post(f"{path}:resume").json()["state"] == "queued"
    assert people.ann.post(f"{path}:priority", {"priority": -3}).json()["priority"] == -3
    copy = people.ann.post(f"{path}:clone", {"lora_r": 4, "name": "other"})
    assert copy.status_code == 201
    assert copy.json()["cloned_from"] == job["id"]
    assert (copy.json()["spec"]["lora_r"], copy.json()["spec"]["max_steps"]) == (4, 10)
    assert people.ann.post(f"{path}:clone", {"lora_rr": 4}).json()["errors"][0]["pointer"] == "/lora_rr"
    assert people.ann.post(f"{path}:cancel").json()["state"] == "cancelled"
    assert people.ann.post(f"{path}:retry").json()["state"] == "queued"


def test_a_waiting_job_says_why(api1, people, provider):
    provider.rooms = type(provider.rooms)(slots=0, session_s=10.0)
    job = people.ann.submit(deadline="2030-01-01T00:00:00Z")
    full = people.ann.get(f"/jobs/{job['id']}").json()
    assert "busy" in full["waiting"]["reason"]
    (listed,) = people.ann.get("/jobs").json()["items"]
    assert listed["waiting"] == full["waiting"]
    assert full["deadline"] == "2030-01-01T00:00:00Z"
    assert full["spec"]["base_model"] == "org/small"
    plan = people.ann.post("/jobs:plan", people.ann.job_file()).json()
    assert (plan["steps"], plan["train_rows"], plan["places"][0]["account"]) == (10, 32, "this-computer")


def test_datasets(api, people):
    made = people.ann.upload(type="text")
    assert made.status_code == 201
    expected = {
        "sha256": hashlib.sha256(ROWS).hexdigest(),
        "size": len(ROWS),
        "rows": 32,
        "type": "text",
        "file_format": "jsonl",
        "unused_keys": [],
        "columns": {},
        "audit": "not audited",
        "parent": "",
    }
    assert made.json() == expected
    assert people.ann.upload().json() == people.ann.get(f"/datasets/{expected['sha256']}").json() == expected
    wrong = people.ann.upload(b'{"text": "a"}\n{"text": 5}\n')
    assert wrong.status_code == 422
    assert "line 2" in wrong.json()["detail"]
    assert people.ann.upload(b"x", name="a.exe").status_code == 422
    assert people.ann.upload(b"").status_code == 422


def test_accounts(api, people, provider):
    mine = {"provider": "cloud", "credentials": "x", "name": "mine", "config": {"slots": 1}}
    made = people.ann.post("/accounts", mine)
    assert made.status_code == 201
    path = f"/accounts/{made.json()['id']}"
    assert people.ann.post("/accounts", mine | {"name": "second"}).status_code == 409
    assert people.ann.post("/accounts", {"provider": "nope", "name": "x"}).json()["errors"][0]["pointer"] == "/provider"
    changed = people.ann.call("PATCH", path, json={"paused": True, "config": {"session_s": 60.0}}).json()
    assert (changed["paused"], changed["config"]) == (True, {"slots": 1, "session_s": 60.0})
    assert people.ann.call("DELETE", path).status_code == 204
    assert people.ann.call("DELETE", path).status_code == 404


def test_a_log_is_read_in_pieces_also_of_a_dead_session(api1, people, provider):
    job = people.ann.submit()
    machine = Machine.launched(api1, provider)
    text = "grüße 🚀\n" * 40
    provider.logs[machine.lease] = text.encode()
    people.ann.post(f"/jobs/{job['id']}:cancel")
    assert people.ann.get(f"/sessions/{machine.lease}").json()["state"] == "expired"
    read, offset = "", 0
    while piece := people.ann.get(f"/sessions/{machine.lease}/log", params={"offset": offset, "limit": 17}):
        assert piece.headers["content-type"].startswith("text/plain")
        offset = int(piece.headers["x-next-offset"])
        if not piece.text:
            break
        read += piece.text
    assert read == text


def test_health(api):
    assert api.client.get("/healthz").text == "ok\n"
    assert api.client.get("/readyz").text == "ready\n"
    api.admin.submit()
    text = api.client.get("/metrics").text
    assert 'trainhop_jobs{state="queued"} 1.0' in text
    assert "trainhop_reports_total 0.0" in text


def test_a_server_that_cannot_write_is_not_ready(sqlite_app, api1):
    """A file lies where the store's folder would be."""
    (sqlite_app.store.folder / "probe").touch()
    assert api1.client.get("/healthz").status_code == 200
    assert api1.client.get("/readyz").status_code in (409, 503)


@pytest.mark.parametrize("values", [{"loss": "NaN"}, {"loss": "Infinity"}])
def test_a_loss_that_is_no_number_is_still_a_report(api, people, provider, values):
    """Guard: without the check in `add_metrics` SQLite answered with a broken NOT NULL constraint."""
    job = people.ann.submit()
    machine = Machine.launched(api, provider)
    machine.start()
    assert machine.report(1, metrics=[{"step": 1, "values": values}]).status_code == 200
    assert people.ann.get(f"/jobs/{job['id']}/metrics").status_code == 200
    assert people.ann.get(f"/jobs/{job['id']}").json()["step"] == 1
