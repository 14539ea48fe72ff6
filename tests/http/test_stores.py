"""Choosing a store over HTTP, and a job whose files lie in it; the Drive is emulated, everything else is real."""

import json
import logging

import pytest
from sqlalchemy import text

from orchestrator.adapters.stores.google_drive.settings import DriveSettings
from orchestrator.config import Settings
from orchestrator.domain.accounts import Account
from orchestrator.ports.providers import Liveness
from orchestrator.services.checkpoints import sweep
from orchestrator.services.dispatch import dispatch
from orchestrator.services.reconcile import reconcile
from orchestrator.services.stores import use_store
from tests.emulators.drive import Rule
from tests.http.http_client import Machine

CANARIES = ("canary-of-the-client-secret", "canary-of-the-refresh-token")


@pytest.fixture
def app(database_url, make_server, drive):
    return make_server(database_url, drivers={"drive": {"endpoint": drive.url}})


@pytest.fixture
def sqlite_app(make_server, tmp_path, drive):
    return make_server(f"sqlite:///{tmp_path / 'trainhop.db'}", drivers={"drive": {"endpoint": drive.url}})


def use(people, drive, name="drive"):
    body = {"credentials": json.dumps(drive.authorized_user())} if name == "drive" else {}
    return people.admin.call("PUT", f"/stores/{name}", json=body)


def stores(people):
    return {s["name"]: s for s in people.admin.get("/stores").json()["items"]}


def test_a_job_whose_checkpoints_lie_in_drive(api, people, provider, drive, tmp_path):
    """From the choice of the store to the adapter, over a hand-over; the running server notices the choice at once."""
    assert stores(people)["local"]["current"]
    assert use(people, drive).json()["owner"] == "somebody@example.com"
    assert (stores(people)["drive"]["current"], stores(people)["local"]["current"]) == (True, False)
    job = people.ann.submit()["id"]
    first = Machine.launched(api, provider)
    first.start()
    assert all(g["resumable"] and g["url"].startswith(drive.url) for g in first.assignment["uploads"])
    assert first.save(4, tmp_path).json() == {"committed": True, "refusal": ""}
    assert first.say("release", first.said("release", step=4, reason="deadline")).status_code == 204

    assert use(people, drive, "local").status_code == 200
    second = Machine.launched(api, provider)
    second.start()
    resume = second.assignment["resume"]
    path = "/api/v1" + resume["url"].partition("/api/v1")[2]
    read = api.client.get(path, headers=resume["headers"])
    assert (read.status_code, read.headers["content-length"]) == (200, str(resume["size"]))
    assert read.content == drive.bytes_of(drive.files()[0])
    for stolen in (path.replace("?store=drive", ""), path.replace("drive", "other")):
        assert api.client.get(stolen, headers=resume["headers"]).status_code == 403
    assert not any(g["resumable"] for g in second.assignment["uploads"]), "new files are local again"

    use(people, drive)
    assert second.say("release", second.said("release", step=4, reason="deadline")).status_code == 204
    third = Machine.launched(api, provider)
    third.start()
    assert third.save(10, tmp_path).json()["committed"]
    assert third.finish(10).status_code == 204
    assert people.ann.get(f"/jobs/{job}").json()["state"] == "succeeded"
    assert people.ann.get(f"/jobs/{job}/adapter").content == b"PK the adapter"


def test_pruned_checkpoints_leave_drive_for_good(api1, people, provider, drive, tmp_path):
    use(people, drive)
    people.ann.submit(checkpoint={"keep": 1})
    machine = Machine.launched(api1, provider)
    machine.start()
    for step in (1, 2, 3):
        machine.save(step, tmp_path)
    assert len(drive.files()) == 2
    assert not any("/trash" in r for r in drive.requests)


def test_what_was_uploaded_and_never_offered_is_cleared_away(api, people, provider, drive, tmp_path):
    """Guard: without `sweep_strays` the stray file took space for ever."""
    use(people, drive)
    people.ann.submit()
    machine = Machine.launched(api, provider)
    machine.start()
    stray = next(g for g in machine.assignment["uploads"] if g["kind"] == "checkpoint")
    machine.assignment["uploads"].remove(stray)
    machine.put(stray, b"damaged on the way")
    machine.save(4, tmp_path)
    assert len(drive.files()) == 2
    machine.say("release", machine.said("release", step=4, reason="deadline"))
    provider.liveness[machine.lease] = Liveness.ENDED
    reconcile(api.app.context)
    assert [f.size for f in drive.files()] != []
    assert not any(drive.bytes_of(f) == b"damaged on the way" for f in drive.files())
    assert Machine.launched(api, provider).start().json()["resume_step"] == 4


def test_a_drive_that_is_away_is_not_asked_about_every_old_file(api1, people, provider, drive, tmp_path):
    """Guard: without `silent` in `sweep` every file waited for its own time-out."""
    use(people, drive)
    people.ann.submit(checkpoint={"keep": 1})
    machine = Machine.launched(api1, provider)
    machine.start()
    rule = drive.rules.add(Rule("DELETE", status=403, reason="dailyLimitExceeded", times=None))
    more = machine.say("grants", {"fence": machine.fence, "kind": "checkpoint", "count": 2})
    machine.assignment["uploads"] += more.json()
    for step in (1, 2, 3, 4):
        machine.save(step, tmp_path)
    before = rule.hits
    sweep(api1.app.context)
    assert rule.hits - before == 1
    assert len(drive.files()) == 4
    drive.rules.clear()
    sweep(api1.app.context)
    assert len(drive.files()) == 2


def test_a_drive_is_tried_out_as_a_worker_uses_it(api1, people, drive):
    """Guard: without the look at `is_offline` such a Drive was accepted, and no checkpoint of the machines that cannot
    call came into it.
    """
    people.ann.post("/accounts", {"provider": "cloud", "credentials": "x", "name": "anns"})
    drive.anonymous = False
    answer = use(people, drive)
    assert answer.status_code == 503
    assert "a worker, which has no sign-in" in answer.json()["detail"]
    assert "Machines of anns cannot upload to this server instead. Set TRAINHOP_PUBLIC_URL" in answer.json()["detail"]
    assert stores(people)["local"]["current"]
    drive.anonymous = True
    assert use(people, drive).json()["note"] == ""
    drive.anonymous = False
    assert "no sign-in" in people.admin.post("/stores/drive:check").json()["detail"]
    assert drive.files() == []


def test_a_drive_that_refuses_workers_is_used_through_the_server(api1, people, provider, drive, tmp_path):
    """Guard: without `_through_this_server` a Drive that the only machines could use through the server was refused."""
    drive.anonymous = False
    note = use(people, drive).json()["note"]
    assert "a worker, which has no sign-in" in note
    assert "Machines upload to this server" in note
    assert people.admin.post("/stores/drive:check").json()["note"] == note
    assert (stores(people)["drive"]["current"], drive.files()) == (True, [])
    people.ann.submit()
    machine = Machine.launched(api1, provider)
    machine.start()
    asked = {"fence": machine.fence, "kind": "checkpoint", "count": 1, "through_server": True}
    machine.assignment["uploads"] = machine.say("grants", asked).json()
    assert machine.save(4, tmp_path).json()["committed"]
    assert len(drive.files()) == 1


def test_a_public_address_lets_all_machines_upload_through_the_server(database_url, make_server, drive):
    """Guard: with accounts judged by their driver alone, such a Drive was refused to a server that all can call."""
    made = make_server(database_url, drivers={"drive": {"endpoint": drive.url}}, public_url="https://trainhop.example")
    with made.context.uow() as tx:
        admin = tx.members.all()[0]
        tx.accounts.add(Account(id="a", provider="cloud", member_id=admin.id, name="cloudy", config={}, created_at=0.0))
    drive.anonymous = False
    used = use_store(made.context, "drive", json.dumps(drive.authorized_user()))
    assert (used.current, "Machines upload to this server" in used.note) == (True, True)


def test_a_store_is_tried_out_before_it_is_used(api1, people, drive):
    """Guard: with `put_store_config` before `_try_out`, the broken store was the current one."""
    refused = people.admin.call("PUT", "/stores/drive", json={})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/credentials")
    assert people.admin.call("PUT", "/stores/drive", json={"credentials": "{}"}).status_code == 422
    assert people.admin.call("PUT", "/stores/s3", json={"credentials": "{}"}).status_code == 404
    assert people.admin.post("/stores/drive:check").status_code == 404
    good = drive.authorized_user()
    drive.tokens.revoke()
    answer = people.admin.call("PUT", "/stores/drive", json={"credentials": json.dumps(good)})
    assert answer.status_code == 503
    assert "sign in again: trainhop store use drive" in answer.json()["detail"]
    assert stores(people)["local"]["current"]
    drive.tokens.refresh_tokens.add(good["refresh_token"])
    drive.contents.limit = 100
    full = people.admin.call("PUT", "/stores/drive", json={"credentials": json.dumps(good)})
    assert "no space" in full.json()["detail"]
    assert list(stores(people)) == ["local"]


def test_checking_leaves_nothing_behind(api1, people, drive):
    use(people, drive)
    assert people.admin.post("/stores/drive:check").json()["problem"] == ""
    assert people.admin.post("/stores/local:check").status_code == 200
    assert drive.files() == []
    assert not list((api1.app.store.folder / "checks").iterdir())


def test_a_dead_sign_in_is_shown_and_signing_in_again_mends_it(api, people, drive):
    use(people, drive)
    drive.tokens.revoke()
    assert "sign in again" in people.admin.post("/stores/drive:check").json()["detail"]
    assert "sign in again" in stores(people)["drive"]["problem"]
    with api.app.context.uow() as tx:
        assert "invalid_grant" in tx.stores.all()[0].problem
    drive.tokens.refresh_tokens.add("another-refresh-token")
    assert use(people, drive).status_code == 200
    with api.app.context.uow() as tx:
        assert tx.stores.all()[0].problem == ""
    assert people.admin.post("/stores/drive:check").status_code == 200


def test_a_launch_waits_while_the_store_cannot_be_used(api1, people, provider, drive):
    """Nothing is lost: the machine is told to try again, the job stays."""
    use(people, drive)
    drive.tokens.revoke()
    job = people.ann.submit()["id"]
    machine = Machine.launched(api1, provider)
    answer = machine.start()
    assert answer.status_code == 503
    assert "sign in again" in answer.json()["detail"]
    drive.tokens.refresh_tokens.add("another-refresh-token")
    use(people, drive)
    assert machine.start().status_code == 200
    assert people.ann.get(f"/jobs/{job}").json()["state"] == "running"


def test_files_in_one_persons_drive_keep_the_store_there(api, people, provider, drive, tmp_path):
    """Guard: without `_take_over` the head of the job was missing in the other Drive."""
    use(people, drive)
    drive.email = "else@example.com"
    assert use(people, drive).json()["owner"] == "else@example.com", "nothing lies there yet"
    people.ann.submit()
    machine = Machine.launched(api, provider)
    machine.start()
    machine.save(4, tmp_path)
    drive.email = "third@example.com"
    refused = use(people, drive)
    assert refused.status_code == 409
    assert "Sign in as else@example.com" in refused.json()["detail"]
    assert stores(people)["drive"]["owner"] == "else@example.com"


def test_no_secret_leaves_the_vault(api, people, provider, drive, tmp_path, caplog, capfd):
    """Canaries in every part of the credential, and what Google makes of it, appear nowhere in clear."""
    drive.tokens.client_secret, drive.tokens.refresh_tokens = CANARIES[0], {CANARIES[1]}
    caplog.set_level(logging.DEBUG)
    said = [use(people, drive).text, people.admin.get("/stores").text, people.admin.post("/stores/drive:check").text]
    people.ann.submit()
    machine = Machine.launched(api, provider)
    said.append(machine.start().text)
    said.append(machine.save(4, tmp_path).text)
    access = list(drive.tokens._access)
    drive.tokens.revoke()
    said.append(people.admin.post("/stores/drive:check").text)
    bad = json.dumps(drive.tokens.authorized_user(drive.url) if drive.tokens.refresh_tokens else {"x": CANARIES[1]})
    said.append(people.admin.call("PUT", "/stores/drive", json={"credentials": bad}).text)
    said.append(people.admin.call("PUT", "/stores/drive", json={"credentials": [CANARIES[0]]}).text)
    dispatch(api.app.context)
    with api.app.engine.connect() as connection:
        for table in ("stores", "store_objects", "events", "leases", "jobs", "checkpoints", "remembered_requests"):
            said += [str(row) for row in connection.execute(text(f"SELECT * FROM {table}"))]
    said += [caplog.text, *capfd.readouterr()]
    everything = "\n".join(said)
    assert "somebody@example.com" in everything
    assert access
    assert not [secret for secret in (*CANARIES, *access) if secret in everything]


@pytest.mark.parametrize(
    "url", ["https://www.googleapis.com", "http://evil.example", "http://127.0.0.1.evil.example", "x"]
)
def test_the_endpoint_is_this_computer_or_googles_own(url):
    with pytest.raises(ValueError, match="on this computer"):
        Settings(drivers={"drive": {"endpoint": url}}).of_driver("drive", DriveSettings)


def test_a_notebook_goes_into_the_drive_in_place_of_the_earlier_one(api1, people, drive):
    """Guard: without `forget` it was made again under the id of a file that was deleted for good, which Drive may
    refuse."""
    job = people.admin.submit()["id"]
    refused = people.admin.post(f"/jobs/{job}:notebook?drive=true")
    assert (refused.status_code, "trainhop store use drive" in refused.json()["detail"]) == (409, True)
    use(people, drive)
    made = people.admin.post(f"/jobs/{job}:notebook?drive=true").json()
    assert "Sign in to Google as somebody@example.com" in made["note"]
    (file,) = [f for f in drive.files() if f.title.endswith(".ipynb")]
    assert (file.title, file.mime) == (made["file_name"], "application/vnd.google.colaboratory")
    assert made["url"] == f"https://colab.research.google.com/drive/{file.id}"
    assert json.loads(drive.bytes_of(file)) == made["notebook"]
    assert not any(secret in (text := json.dumps(made)) for secret in (*CANARIES, people.admin.token, "thl_"))
    assert "thc_" in text
    drive.contents.mark(file.id, trashed=True)
    again = people.admin.post(f"/jobs/{job}:notebook?drive=true").json()
    assert again["url"] == made["url"]
    (file,) = [f for f in drive.files() if f.title.endswith(".ipynb")]
    assert (file.trashed, json.loads(drive.bytes_of(file))) == (False, again["notebook"])
    assert again["notebook"] != made["notebook"], "a code of its own"
    drive.contents.delete(file.id)
    anew = people.admin.post(f"/jobs/{job}:notebook?drive=true").json()
    assert anew["url"] != made["url"]
    assert drive.bytes_of(next(f for f in drive.files() if f.id == anew["url"].rpartition("/")[2]))
