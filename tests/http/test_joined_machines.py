"""Machines of one's own as the server sees them: a code, a place of their own, reports, drains, and their leave."""

import pytest

from orchestrator.services.dispatch import dispatch
from orchestrator.services.joined_machines import CODE_LASTS_S
from orchestrator.services.reconcile import reconcile
from tests.http.http_client import Machine
from worker.shared.joined_messages import JOIN_PROTOCOL

GIB = 2**30
OFFER = {"hostname": "box", "python": "3.12.1", "slots": 1, "memory_bytes": 24 * GIB, "gpu": True}


def new_code(caller, **query):
    answer = caller.post("/machine-codes", params=query)
    assert answer.status_code == 201, answer.text
    return answer.json()["code"]


def join(api, code, *, nonce="n" * 16, **changes):
    asked = {"protocol": JOIN_PROTOCOL, "code": code, "nonce": nonce, "offer": OFFER} | changes
    return api.client.post("/api/v1/machines", json=asked)


def report(api, place, sessions=(), **changes):
    body = {"protocol": JOIN_PROTOCOL, "offer": OFFER, "sessions": list(sessions)} | changes
    return api.as_(place["token"]).post(f"/machines/{place['account']}/report", body)


def joined(api, caller, **query):
    answer = join(api, new_code(caller, **query))
    assert answer.status_code == 200, answer.text
    assert report(api, answer.json()).status_code == 200
    return answer.json()


def refused(answer, status, words):
    assert (answer.status_code, answer.json()["detail"]) == (status, words)


def started(api, place):
    """What the machine is ordered to start at its next report."""
    dispatch(api.app.context)
    return [order["ticket"] for order in report(api, place).json()["start"]]


def test_a_code_works_once_and_joins_one_machine(api, people, clock):
    """Guards: without the comparison of nonces a second machine got the first one's token; without `expires_at` an old
    code joined; with a code of a notebook accepted, it joined the account of none."""
    code = new_code(people.ann)
    first = join(api, code)
    assert first.status_code == 200
    assert join(api, code).json() == first.json(), "the answer was lost"
    more = "Create a new one with `trainhop accounts code`."
    refused(join(api, code, nonce="m" * 16), 409, f"This code was already used by box. {more}")
    refused(join(api, "thm_wrong"), 404, f"The server does not know this code. {more}")
    notebook = people.ann.post(f"/jobs/{people.ann.submit()['id']}:notebook").json()["notebook"]
    ours = notebook["cells"][1]["source"].partition("thc_")[2].partition('"')[0].partition("'")[0]
    assert join(api, f"thc_{ours}").status_code == 404
    claim = {"protocol": 1, "code": new_code(people.ann), "nonce": "n", "hardware": {"device": "cpu"}}
    assert api.client.post("/api/v1/claims", json=claim).status_code == 404
    old = new_code(people.ann)
    clock.tick(CODE_LASTS_S + 1)
    refused(join(api, old), 409, f"This code has expired: it worked for 24 hours. {more}")
    assert len(people.ann.get("/machines").json()["items"]) == 1


@pytest.mark.parametrize(("theirs", "which"), [(JOIN_PROTOCOL - 1, "machine"), (JOIN_PROTOCOL + 1, "server")])
def test_another_version_is_refused_and_leaves_the_code(api1, people, theirs, which):
    code = new_code(people.ann)
    answer = join(api1, code, protocol=theirs)
    assert answer.status_code == 422
    assert answer.json()["detail"].endswith(f"Upgrade the {which}.")
    assert join(api1, code).status_code == 200


def test_a_member_has_several_machines_and_only_their_jobs_run_there(api, people):
    """Guard: with the old index of accounts the second machine of a member was refused."""
    first, second = joined(api, people.ann), joined(api, people.ann)
    assert (first["name"], second["name"]) == ("box", "box-2")
    assert [m["name"] for m in people.ann.get("/machines").json()["items"]] == ["box", "box-2"]
    assert people.bob.get("/machines").json()["items"] == []
    for caller in (people.bob, people.ann):
        caller.submit(placement={"providers": ["joined"]})
    assert len(started(api, first) + started(api, second)) == 1
    assert [len(who.get("/sessions").json()["items"]) for who in (people.ann, people.bob)] == [1, 0]


def test_only_an_admin_adds_a_machine_for_all(api1, people):
    answer = people.ann.post("/machine-codes", params={"shared": True})
    assert (answer.status_code, "Only an admin" in answer.json()["detail"]) == (403, True)
    place = joined(api1, people.admin, shared=True)
    for caller in (people.bob, people.ann):
        caller.submit(placement={"providers": ["joined"]})
    assert len(started(api1, place)) == 1, "one slot, and the next member's job waits for its turn"
    assert people.bob.post(f"/accounts/{place['account']}:drain").status_code == 403


def test_a_machines_token_opens_nothing_else(api1, people):
    """Guard: with any machine's token accepted in `holds`, one machine fetched the tickets of another."""
    ours, theirs = joined(api1, people.ann), joined(api1, people.bob)
    for token in (ours["token"], "thl_wrong", people.ann.token, people.admin.token):
        for method, path in (("POST", "report"), ("GET", "orders?seconds=0"), ("POST", "leave")):
            answer = api1.as_(token).call(method, f"/machines/{theirs['account']}/{path}", json={})
            assert answer.status_code == 401, (method, path)
    for path in ("/me", "/jobs", "/accounts", "/machines"):
        assert api1.as_(ours["token"]).get(path).status_code == 401


def test_a_machine_that_was_removed_is_unknown_at_once(api, people):
    place = joined(api, people.ann)
    assert people.ann.call("DELETE", f"/accounts/{place['account']}").status_code == 204
    assert report(api, place).status_code == 401


def test_a_machine_waits_for_orders_and_leaves_when_it_has_none(api1, people):
    place = joined(api1, people.ann)
    machine = api1.as_(place["token"])
    assert machine.get(f"/machines/{place['account']}/orders?seconds=0").json() == {"new": False}
    people.ann.submit(placement={"providers": ["joined"]})
    dispatch(api1.app.context)
    assert machine.get(f"/machines/{place['account']}/orders").json() == {"new": True}
    (ticket,) = started(api1, place)
    answer = machine.post(f"/machines/{place['account']}/leave")
    refused(answer, 409, "box still has running sessions (1). Stop them first.")
    report(api1, place, [{"lease": ticket["lease"], "state": "running", "pid": 7}])
    report(api1, place, [{"lease": ticket["lease"], "state": "ended", "code": 0}])
    reconcile(api1.app.context)
    assert machine.post(f"/machines/{place['account']}/leave").status_code == 204
    assert report(api1, place).status_code == 401
    reconcile(api1.app.context)


def test_draining_has_sessions_save_and_starts_nothing(api, people):
    """Guard: without `paused` the job came back to the machine that was to be restarted."""
    place = joined(api, people.ann)
    job = people.ann.submit(placement={"providers": ["joined"]})
    (ticket,) = started(api, place)
    worker = Machine(api, ticket["lease"], ticket["token"])
    assert worker.start().status_code == 200
    report(api, place, [{"lease": ticket["lease"], "state": "running", "pid": 7}])
    drained = people.ann.post(f"/accounts/{place['account']}:drain").json()
    assert (drained["account"]["paused"], drained["sessions"]) == (True, 1)
    assert people.ann.post(f"/accounts/{place['account']}:drain").json()["sessions"] == 0
    assert worker.report(1).json()["action"] == "drain"
    assert worker.say("release", worker.said("release", step=1, reason="drained")).status_code == 204
    reconcile(api.app.context)
    assert started(api, place) == []
    assert people.ann.get(f"/jobs/{job['id']}").json()["state"] == "queued"
    people.ann.call("PATCH", f"/accounts/{place['account']}", json={"paused": False})
    report(api, place, [{"lease": ticket["lease"], "state": "ended", "code": 0}])
    assert len(started(api, place)) == 1


def test_readings_and_a_wrong_clock_are_shown(api1, people, clock):
    place = joined(api1, people.ann)
    gpu = {"name": "T4", "total_bytes": 16 * GIB, "used_bytes": GIB, "percent": 50.0}
    report(api1, place, readings={"gpus": [gpu], "load": 0.5}, clock=clock.now() + 7200)
    (machine,) = people.ann.get("/machines").json()["items"]
    assert (machine["readings"]["gpus"], machine["readings"]["load"]) == ([gpu], 0.5)
    assert (machine["quiet_s"], machine["warning"]) == (0.0, "Its clock is 120 minutes ahead.")


def test_machines_are_not_connected_by_hand(api1, people):
    answer = people.admin.post("/accounts", {"provider": "joined", "name": "mine"})
    refused(answer, 422, "Machines join by themselves. Create a code with `trainhop accounts code`.")
