"""Events over server-sent events, from a real server: what was sent before a break is not sent again, nothing is left
out."""

import json
import threading

import pytest

from tests.http.http_client import People, served


@pytest.fixture
def live(app):
    with served(app) as api:
        yield api


def _read(caller, path, count, *, last=None, act=lambda: None):
    """The next `count` events of a stream; `act` happens once it is open."""
    headers = {"Authorization": f"Bearer {caller.token}"} | ({"Last-Event-ID": str(last)} if last is not None else {})
    found, event = [], {}
    with caller.api.client.stream("GET", f"/api/v1{path}", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        act()
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if line:
                event[name] = value
                continue
            if "id" in event:
                found.append((int(event["id"]), event["event"], json.loads(event["data"])))
            event = {}
            if len(found) == count:
                return found
    return found


def test_a_stream_goes_on_after_the_last_event(live):
    """Guard: with `Last-Event-ID` ignored the second stream began with the first event again."""
    people = People.of(live)
    job = people.ann.submit()
    path = f"/jobs/{job['id']}"
    first = _read(people.ann, f"{path}/events/stream", 2, act=lambda: people.ann.post(f"{path}:pause"))
    assert [kind for _, kind, _ in first] == ["job.submitted", "job.paused"]

    def more():
        for verb in ("pause", "resume", "cancel"):
            people.ann.post(f"{path}:{verb}")

    people.ann.post(f"{path}:resume")
    rest = _read(people.ann, f"{path}/events/stream", 4, last=first[-1][0], act=more)
    ids = [number for number, _, _ in first + rest]
    listed = people.ann.get(f"{path}/events").json()["items"]
    assert ids == [e["id"] for e in listed] == sorted(set(ids))
    assert rest[-1][2] == listed[-1]
    assert [
        e["id"] for e in people.ann.get(f"{path}/events", params={"after": ids[2], "limit": 2}).json()["items"]
    ] == ids[3:5]


def test_a_stream_ends_with_the_token_that_opened_it(live):
    """Guard: without `is_unchanged` in `all_stream` whoever was removed went on hearing of everybody's jobs."""
    people = People.of(live)
    made = people.admin.post("/members", {"name": "eve", "role": "admin"}).json()
    eve = live.as_(people.admin.post("/tokens", {"member": "eve"}).json()["secret"])

    def remove():
        assert people.admin.call("DELETE", f"/members/{made['id']}").status_code == 204
        people.ann.submit()

    assert _read(eve, "/events/stream", 1, act=remove) == []


@pytest.mark.parametrize("path", ["/events/stream", "/jobs/{job}/events/stream"])
def test_a_stream_ends_when_its_member_may_see_less(live, path):
    """Guard: with only the token compared in `is_unchanged`, bob went on hearing of ann's jobs."""
    people = People.of(live)
    _everyone_sees(people, True)
    job = people.ann.submit()["id"]

    def close():
        _everyone_sees(people, False)
        people.ann.post(f"/jobs/{job}:pause")

    assert [kind for _, kind, _ in _read(people.bob, path.format(job=job), 1, last=0)] == ["job.submitted"]
    last = people.ann.get(f"/jobs/{job}/events").json()["items"][-1]["id"]
    assert _read(people.bob, path.format(job=job), 1, last=last, act=close) == []


def _everyone_sees(people, seen):
    assert people.admin.call("PUT", "/team", json={"everyone_sees_jobs": seen}).status_code == 200


def test_members_see_their_own_jobs_only(live):
    """Guard: without the member's condition in `Queries.events` Ann's stream began with Bob's job."""
    people = People.of(live)

    def work():
        people.bob.submit()
        people.ann.submit()

    ((_, kind, seen),) = _read(people.ann, "/events/stream", 1, act=work)
    assert kind == "job.submitted"
    assert seen["job"] == people.ann.get("/jobs").json()["items"][0]["id"]
    both = _read(people.admin, "/events/stream", 2, last=0)
    assert len({e["job"] for _, _, e in both}) == 2


def test_many_writers_leave_no_gap(live):
    people = People.of(live)
    spec = people.ann.job_file()

    def submit():
        threads = [threading.Thread(target=lambda: people.ann.post("/jobs", spec)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    seen = _read(people.ann, "/events/stream", 20, last=0, act=submit)
    assert [number for number, _, _ in seen] == sorted({number for number, _, _ in seen})
    assert {e["job"] for _, _, e in seen} == {j["id"] for j in people.ann.get("/jobs").json()["items"]}
