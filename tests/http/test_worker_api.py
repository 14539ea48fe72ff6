"""The machine's side: grants, files, repeated and misdirected messages."""

import pytest

from orchestrator.services import worker_messages
from tests.http.http_client import Machine
from worker.shared.messages import Release


def _path(grant):
    return "/api/v1" + grant["url"].partition("/api/v1")[2]


def test_an_upload_is_written_once(machine):
    """Guard: with `replace` instead of `link` in `LocalStore.adopt` the second bytes won."""
    grant = machine.assignment["uploads"][0]
    assert machine.put(grant, b"first").status_code == 204
    assert machine.put(grant, b"first").status_code == 204
    assert machine.put(grant, b"other").status_code == 409
    store = machine.api.app.store
    assert store.path(grant["key"]).read_bytes() == b"first"
    assert not list(store.folder.glob(".incoming-*"))


def test_nothing_is_written_once_the_lease_is_over(machine, people):
    """Guards: without `_require_live` a file that nobody sweeps any more was taken; without that in `_alone`,
    one that was on its way when the lease ended."""
    first, second = machine.assignment["uploads"][:2]
    release = Release.model_validate(machine.said("release", step=0, reason="drained"))

    def ends_meanwhile():
        worker_messages.receive(machine.api.app.context, release)
        yield b"late"

    cut = machine.put(first, ends_meanwhile())
    late = machine.put(second, b"late")
    store = machine.api.app.store
    for grant, answer in ((first, cut), (second, late)):
        assert (answer.status_code, answer.json()["type"]) == (409, "urn:trainhop:problem:stale-fence")
        assert "has ended" in answer.json()["detail"]
        assert not store.path(grant["key"]).exists()


def test_a_later_lease_opens_no_earlier_one(machine, provider):
    """Guard: without the fence compared, the zombie's file was taken while the next machine worked."""
    grant = machine.assignment["uploads"][0]
    machine.say("release", machine.said("release", step=0, reason="deadline"))
    following = Machine.launched(machine.api, provider)
    assert following.start().status_code == 200
    assert following.fence == 2
    assert machine.put(grant, b"late").status_code == 409
    assert following.put(following.assignment["uploads"][0], b"mine").status_code == 204


@pytest.mark.parametrize("grant_header", [{}, {"X-Grant": "0" * 64}, {"X-Grant": "é".encode("latin-1")}])
def test_without_its_grant_a_file_is_shut(machine, grant_header):
    """Guard: with the comparison removed the file could be read and written by anybody."""
    path = _path(machine.assignment["uploads"][0])
    assert machine.api.client.put(path, content=b"x", headers=grant_header).status_code == 403
    assert machine.api.client.get(path, headers=grant_header).status_code == 403


def test_a_grant_is_for_one_file_and_one_direction(machine):
    first, second = machine.assignment["uploads"][:2]
    assert machine.api.client.get(_path(first), headers=first["headers"]).status_code == 403
    assert machine.api.client.put(_path(second), content=b"x", headers=first["headers"]).status_code == 403
    for climbing in ("/api/v1/blobs/../secret.key", "/api/v1/blobs/%2e%2e/secret.key", "/api/v1/blobs//etc/passwd"):
        assert machine.api.client.get(climbing, headers=first["headers"]).status_code in (403, 404)


def test_data_is_read_through_its_grant_also_in_part(machine):
    grant = machine.assignment["datasets"][0]
    whole = machine.api.client.get(_path(grant), headers=grant["headers"])
    assert int(whole.headers["content-length"]) == grant["size"] == len(whole.content)
    part = machine.api.client.get(_path(grant), headers=grant["headers"] | {"Range": "bytes=3-9"})
    assert (part.status_code, part.content) == (206, whole.content[3:10])


def test_starting_twice(machine):
    again = machine.start("n1")
    assert again.status_code == 200
    other = machine.start("n2")
    assert other.status_code == 409
    old = machine.say("start", {"protocol": 99, "nonce": "n1", "hardware": {}})
    assert old.status_code == 422


@pytest.mark.parametrize("verb", ["report", "release", "finish"])
def test_a_message_for_another_lease_is_refused(machine, verb):
    body = machine.said(verb, step=1, phase="train", reason="deadline") | {"lease": "lease-other"}
    answer = machine.say(verb, body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/lease"


def test_a_report_that_is_none_is_explained(machine):
    answer = machine.say("report", {"lease": machine.lease, "seq": "x"})
    assert answer.status_code == 422
    assert {"/fence", "/seq", "/step", "/phase"} <= {e["pointer"] for e in answer.json()["errors"]}
    assert machine.caller.call("POST", f"/leases/{machine.lease}/report", content=b"{").status_code == 422


def test_a_report_seen_before_changes_nothing(machine, people):
    machine.report(5)
    machine.seq -= 1
    machine.report(3, metrics=[{"step": 5, "values": {"loss": 99.0}}])
    job = machine.assignment["job"]
    assert people.ann.get(f"/jobs/{job}/metrics").json()["items"] == [{"name": "loss", "step": 5, "value": 1 / 6}]


def test_more_grants(machine):
    asked = {"fence": machine.fence, "kind": "checkpoint", "count": 2}
    grants = machine.say("grants", asked).json()
    assert len({g["key"] for g in grants}) == 2
    assert machine.say("grants", asked | {"kind": "dataset"}).status_code == 422
    assert machine.say("grants", asked | {"count": 1000}).status_code == 422


def test_an_offer_of_nothing_is_refused_in_words(machine, tmp_path):
    machine.save(2, tmp_path)
    head, machine.head = machine.head, None
    reply = machine.save(3, tmp_path).json()
    assert reply["committed"] is False
    assert head[:12] in reply["refusal"]


def test_the_last_word_may_be_repeated(machine, people, tmp_path):
    assert machine.finish(10).status_code == 409  # nothing is committed yet
    body = machine.said("finish", step=1, failure={"message": "out of memory", "permanent": True})
    assert machine.say("finish", body).status_code == 204
    assert machine.say("finish", body).status_code == 204
    job = people.ann.get(f"/jobs/{machine.assignment['job']}").json()
    assert (job["state"], job["message"]) == ("failed", "out of memory")
