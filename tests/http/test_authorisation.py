"""Who may do what: every operation of the OpenAPI document, for every kind of caller."""

import dataclasses
import re

import pytest
from sqlalchemy import delete

from orchestrator.adapters.database import tables
from orchestrator.entrypoints.http.auth import Authenticator
from tests.http.http_client import Machine, People

BODIES = {
    "submit_job": {"base_model": "m", "datasets": [{"path": "sha256:" + "0" * 64}], "max_steps": 1},
    "plan_job": {"base_model": "m", "datasets": [{"path": "sha256:" + "0" * 64}], "max_steps": 1},
    "set_priority": {"priority": -1},
    "clone_job": {},
    "evaluate_job": {},
    "add_member": {"name": "eve"},
    "add_token": {"name": "t"},
    "add_account": {"provider": "cloud", "credentials": "x", "name": "mine"},
    "change_account": {"paused": True},
    "diagnose_account": {},
    "set_hub_token": {"token": "hf_x"},
    "set_tracker": {"key": "x"},
    "start_audit": {},
    "add_candidate": {"job": "unknown"},
    "promote": {"job": "unknown"},
    "rollback": {},
    "start_comparison": {},
    "change_comparison": {"plan": "small"},
    "add_rater": {"name": "Ann"},
    "add_judge_endpoint": {"name": "house", "url": "http://127.0.0.1:9/v1", "model": "m"},
    "change_judge_endpoint": {"key": "k"},
    "start_judgement": {"endpoint": "house"},
    "resume_judgement": {},
    "export_adapter": {"format": "gguf"},
    "export_adapter_on_machine": {"format": "gguf"},
    "push_adapter": {},
    "chat": {"question": "hello"},
    "chat_on_machine": {},
    "change_team": {"everyone_sees_jobs": True},
    "share_job": {},
    "set_tags": {"tags": ["a"]},
    "set_note": {"note": "a"},
    "label_audit_row": {"unit": "0.1", "label": "correct"},
    "openai_create_job": {"model": "m", "training_file": "file-" + "0" * 64},
}
ADMIN_ONLY = {
    "list_members",
    "add_member",
    "remove_member",
    "list_stores",
    "use_store",
    "check_store",
    "try_upload",
    "get_store_kind",
    "change_team",
}
SEEN_BY_COLLEAGUES = {
    "get_job",
    "list_job_sessions",
    "list_checkpoints",
    "get_checkpoint",
    "list_metrics",
    "list_samples",
    "list_events",
    "list_evaluations",
    "get_session",
    "get_session_log",
    "list_readings",
    "openai_get_job",
    "openai_list_events",
    "openai_list_checkpoints",
}
"""With the team's setting, besides the streams of events, which `test_events` reads."""
STREAMS = {"stream_job_events", "stream_events"}
OF_VIEWERS = {"add_token", "remove_token", "add_login_link"}
BY_GRANT = {"read_blob", "write_blob"}
BY_CODE = {"claim_job", "answer_cell_check", "join_machine"}
OPEN = {"health", "ready", "prometheus", "worker_wheel"}


def _operations(api):
    document = api.client.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield operation["operationId"], method.upper(), path, operation.get("tags", [])


def _said(answer):
    """The words of an error, in either form."""
    found = answer.json()
    return found["error"]["message"] if "error" in found else found["detail"]


def _send(api, method, path, operation, headers, **values):
    filled = re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], "unknown"), path)
    params = {"name": "x.jsonl"} if operation == "upload_dataset" else None
    return api.client.request(method, filled, headers=headers, json=BODIES.get(operation), params=params)


def test_every_operation_is_documented(api1):
    for path, methods in api1.client.get("/openapi.json").json()["paths"].items():
        for operation in methods.values():
            assert operation["summary"]
            assert operation["tags"]
            assert operation["operationId"]
            if operation["tags"] != ["health"]:
                invalid = "400" if path.startswith("/v1/") else "422"
                assert {"401", "404", invalid} <= set(operation["responses"])


def test_nobody_gets_in_without_a_token(api1):
    """Guard: with the `actor` dependency taken off `get_me`, that route answered 200 here."""
    for operation, method, path, _ in _operations(api1):
        if operation in OPEN | BY_CODE:
            continue
        for headers in ({}, {"Authorization": "Bearer th_wrong"}, {"Authorization": "Basic YTpi"}):
            answer = _send(api1, method, path, operation, headers, sha256="0" * 64)
            assert answer.status_code == (403 if operation in BY_GRANT else 401), (operation, answer.text)
            form = "application/json" if path.startswith("/v1/") else "application/problem+json"
            assert answer.headers["content-type"] == form
            if operation not in BY_GRANT:
                assert answer.headers["www-authenticate"] == "Bearer"


def test_a_lease_token_opens_nothing_but_its_lease(api1, people, provider):
    """Guard: with `Authenticator.holds` comparing nothing, the other lease's routes answered 200 and 422."""
    people.ann.submit()
    mine = Machine.launched(api1, provider)
    people.ann.submit()
    other = Machine.launched(api1, provider)
    headers = {"Authorization": f"Bearer {mine.caller.token}"}
    for operation, method, path, tags in _operations(api1):
        if operation in OPEN | BY_GRANT | BY_CODE:
            continue
        answer = _send(api1, method, path, operation, headers, lease_id=other.lease, sha256="0" * 64)
        assert answer.status_code == 401, (operation, tags, answer.text)
    assert mine.start().status_code == 200


@pytest.mark.parametrize("who", ["ann", "admin"])
def test_people_cannot_speak_for_machines(api1, people, provider, who):
    people.ann.submit()
    machine = Machine.launched(api1, provider)
    caller = getattr(people, who)
    for verb in ("start", "report", "offer", "release", "finish", "grants", "chat"):
        assert caller.post(f"/leases/{machine.lease}/{verb}", {}).status_code == 401


def _belongings(api, people, provider, tmp_path):
    """A job of Ann's with a session and a checkpoint, her account and her token: the values of paths."""
    job = people.ann.submit()
    machine = Machine.launched(api, provider)
    machine.start()
    machine.save(2, tmp_path)
    account = people.ann.post("/accounts", {"provider": "cloud", "credentials": "x", "name": "anns"}).json()
    token = people.ann.get("/tokens").json()["items"][0]
    return {
        "job_id": job["id"],
        "session_id": machine.lease,
        "account_id": account["id"],
        "token_id": token["id"],
        "sha256": machine.head,
        "place": "0",
        "file_id": f"file-{job['spec']['datasets'][0]['sha256']}",
        "export_format": "gguf",
    }


def _everyone_sees_jobs(people):
    assert people.admin.call("PUT", "/team", json={"everyone_sees_jobs": True}).json() == {"everyone_sees_jobs": True}


def _of_people(api):
    """The operations with something of a member in their path."""
    for operation, method, path, tags in _operations(api):
        of_others = not {"worker", "stores"} & set(tags)
        if "{" in path and of_others and operation not in ADMIN_ONLY | BY_CODE | {"get_dataset"}:
            yield operation, method, path


def test_what_belongs_to_others_does_not_exist(api, people, provider, tmp_path):
    """Guard: with `may_see_jobs_of` and `may_see` always true, Ann's job answered Bob."""
    values = _belongings(api, people, provider, tmp_path)
    headers = {"Authorization": f"Bearer {people.bob.token}"}
    tried = 0
    for operation, method, path in _of_people(api):
        answer = _send(api, method, path, operation, headers, **values)
        assert answer.status_code == 404, (operation, answer.text)
        tried += 1
    assert tried >= 20
    for path in ("/jobs", "/sessions", "/sessions?live=true", "/jobs?member=ann"):
        assert people.bob.get(path).json()["items"] == []
        assert people.ann.get("/jobs?member=ann").json()["items"]
    names = [a["name"] for a in people.bob.get("/accounts").json()["items"]]
    assert names == ["this-computer"]
    assert values["token_id"] not in {t["id"] for t in people.bob.get("/tokens").json()["items"]}
    assert people.ann.get(f"/jobs/{values['job_id']}").status_code == 200
    assert people.admin.get(f"/jobs/{values['job_id']}").status_code == 200


def test_a_colleagues_job_can_be_seen_and_not_touched(api, people, provider, tmp_path):
    """Guards: without `require_owner` in `owned_job` Bob cancelled Ann's job; with `SeenJob` at `download_adapter` he
    could have its adapter; with `may_see` in `seen_job` he was told that there is none."""
    values = _belongings(api, people, provider, tmp_path)
    _everyone_sees_jobs(people)
    headers = {"Authorization": f"Bearer {people.bob.token}"}
    seen, refused = set(), set()
    for operation, method, path in _of_people(api):
        if operation in STREAMS:
            continue
        answer = _send(api, method, path, operation, headers, **values)
        if operation in SEEN_BY_COLLEAGUES:
            assert answer.status_code == 200, (operation, answer.text)
            seen.add(operation)
        elif "/jobs/{job_id}" in path:
            assert answer.status_code == 403, (operation, answer.text)
            assert _said(answer) == f"Job {values['job_id']} belongs to ann. Only ann or an admin can do this."
            refused.add(operation)
        else:
            assert answer.status_code == 404, (operation, answer.text)
    assert seen == SEEN_BY_COLLEAGUES
    assert {"cancel_job", "delete_job", "clone_job", "download_adapter", "download_checkpoint", "chat"} <= refused
    assert {"export_adapter", "push_adapter", "make_notebook", "download_export", "list_pushes"} <= refused
    assert {"openai_cancel_job", "openai_pause_job", "openai_resume_job"} <= refused
    for path in ("/jobs", "/sessions", "/sessions?live=true", "/jobs?member=ann"):
        assert people.bob.get(path).json() == people.ann.get(path).json()
        assert people.bob.get(path).json()["items"]
    assert people.bob.get("/jobs?member=bob").json()["items"] == []
    assert people.bob.get("/datasets").json()["items"] == people.bob.get("/datasets?member=ann").json()["items"] == []
    assert people.ann.get(f"/jobs/{values['job_id']}").json()["state"] == "running"


def test_a_viewer_sees_all_jobs_and_changes_nothing(api, people, provider, tmp_path):
    """Guards: without `refuse_viewer` in `auth.actor` a viewer got 422 and 404 for changes; without the role in
    `_Quick` it queued a job."""
    values = _belongings(api, people, provider, tmp_path)
    assert people.admin.post("/members", {"name": "vera", "role": "viewer"}).json()["role"] == "viewer"
    vera = api.as_(people.admin.post("/tokens", {"member": "vera"}).json()["secret"])
    headers = {"Authorization": f"Bearer {vera.token}"}
    for operation, method, path, tags in _operations(api):
        if operation in OPEN | BY_GRANT | BY_CODE | STREAMS | OF_VIEWERS or "worker" in tags:
            continue
        answer = _send(api, method, path, operation, headers, **values)
        if method != "GET":
            assert answer.status_code == 403, (operation, answer.text)
            if operation not in ADMIN_ONLY:
                assert _said(answer).startswith("Your role is viewer"), operation
        elif operation in SEEN_BY_COLLEAGUES:
            assert answer.status_code == 200, (operation, answer.text)
        elif "/jobs/{job_id}" in path:
            assert answer.status_code == 403, (operation, answer.text)
    assert vera.get("/jobs").json() == people.admin.get("/jobs").json()
    assert vera.get("/datasets").json()["items"] == []
    made = vera.post("/tokens", {"name": "phone"}).json()
    assert made["role"] == "viewer"
    assert vera.call("DELETE", f"/tokens/{made['id']}").status_code == 204
    assert vera.post("/tokens", {"member": "ann"}).status_code == 403
    assert vera.post("/login-links").status_code == 201


def test_a_new_server_shows_all_jobs_and_an_upgraded_one_does_not(api):
    """Guards: without the line in `first_start` a new server showed members their own jobs only; with a missing row
    read as true in `_token`, an upgraded one opened what had been private."""
    assert api.admin.get("/team").json() == {"everyone_sees_jobs": True}
    people = People.of(api)
    _everyone_sees_jobs(people)
    job = people.ann.submit()["id"]
    assert people.bob.get(f"/jobs/{job}").status_code == 200
    with api.app.engine.begin() as connection:
        connection.execute(delete(tables.team))  # as the migration leaves it
    api.client.app.state.server.auth.forget()
    assert people.bob.get("/team").json() == {"everyone_sees_jobs": False}
    assert people.bob.get(f"/jobs/{job}").status_code == 404


def test_what_only_admins_may(api1, people):
    for operation, method, path, _ in _operations(api1):
        if operation in ADMIN_ONLY:
            headers = {"Authorization": f"Bearer {people.ann.token}"}
            assert _send(api1, method, path, operation, headers).status_code == 403
    assert people.ann.post("/tokens", {"member": "bob"}).status_code == 403
    assert people.ann.post("/accounts", {"provider": "local", "name": "pool"}).status_code == 403
    pool = people.ann.get("/accounts").json()["items"][0]
    assert people.ann.call("PATCH", f"/accounts/{pool['id']}", json={"paused": True}).status_code == 403
    job = people.ann.submit()
    assert people.ann.post(f"/jobs/{job['id']}:priority", {"priority": 1}).status_code == 403
    assert people.ann.post("/jobs", people.ann.job_file(priority=1)).status_code == 403
    assert people.admin.post(f"/jobs/{job['id']}:priority", {"priority": 1}).json()["priority"] == 1


def test_members_are_not_told_who_else_is_here(api1, people):
    """Guard: with the member looked up first, who there is was told from who there is not by 403 and 404."""
    asked = {"/tokens": ("member", {}), "/accounts": ("owner", {"provider": "cloud", "credentials": "x"})}
    for path, (who, more) in asked.items():
        answers = [people.ann.post(path, {who: name, **more}) for name in ("bob", "admin", "nobody-at-all")]
        assert {answer.status_code for answer in answers} == {403}
        assert len({answer.text for answer in answers}) == 1
    me = people.ann.get("/me").json()
    for mine in (me["id"], me["name"]):
        assert people.ann.post("/tokens", {"member": mine}).status_code == 201
    assert people.admin.post("/tokens", {"member": "nobody-at-all"}).status_code == 404


def test_a_revoked_token_is_useless_at_once(api, people):
    """Guard: without `auth.forget` in `remove_token` the token lived on for a second."""
    made = people.ann.post("/tokens", {"name": "second"}).json()
    second = api.as_(made["secret"])
    assert second.get("/me").json()["name"] == "ann"
    assert people.ann.call("DELETE", f"/tokens/{made['id']}").status_code == 204
    assert second.get("/me").status_code == 401
    assert people.ann.call("DELETE", f"/tokens/{made['id']}").status_code == 404


def test_a_token_ends_when_it_said_it_would(api1, people, clock):
    state = api1.client.app.state
    forgetful = Authenticator(state.server.ctx, state.server.queries, remembered_s=0.0)
    state.server = dataclasses.replace(state.server, auth=forgetful)
    short = api1.as_(people.ann.post("/tokens", {"days": 1}).json()["secret"])
    assert short.get("/me").status_code == 200
    clock.tick(86_401)
    assert short.get("/me").status_code == 401
