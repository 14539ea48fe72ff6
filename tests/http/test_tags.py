"""Tags of jobs: set at submit or later, and a filter of every list."""

from __future__ import annotations

import pytest

from orchestrator.services.tags import MAX_TAGS
from orchestrator.testing import FakeClock
from tests.dashboard.test_pages import log_in
from tests.http.http_client import Api, ApiUser, People


def _named(who: ApiUser, query: str) -> list[str]:
    return [job["name"] for job in who.get(f"/jobs?{query}").json()["items"]]


def test_jobs_are_found_by_their_tags(api: Api, people: People, clock: FakeClock) -> None:
    """Guards: without the look at the query in `_Quick` a submit lost its tags; without the member's condition beside
    the tag, bob's list had ann's job."""
    file = people.ann.job_file()
    for name, tags in (("first", "tag=night&tag=b-1.2_x"), ("second", "tag=night"), ("third", "")):
        made = people.ann.post(f"/jobs?{tags}", file | {"name": name})
        assert made.status_code == 201, made.text
        clock.tick(1)
        assert made.json()["tags"] == sorted(t.partition("=")[2] for t in tags.split("&") if t)
    people.bob.submit(name="bobs")
    assert _named(people.ann, "tag=night") == ["second", "first"]
    assert _named(people.ann, "tag=b-1.2_x") == ["first"]
    assert _named(people.ann, "tag=night&name=sec") == ["second"]
    assert _named(people.ann, "tag=nothing") == _named(people.bob, "tag=night") == []
    first = people.ann.get("/jobs?tag=b-1.2_x").json()["items"][0]
    assert first["tags"] == people.ann.get(f"/jobs/{first['id']}").json()["tags"] == ["b-1.2_x", "night"]
    changed = people.ann.call("PUT", f"/jobs/{first['id']}/tags", json={"tags": ["z", "a", "z"]})
    assert changed.json() == {"tags": ["a", "z"]}
    assert _named(people.ann, "tag=night") == ["second"]
    assert people.ann.call("PUT", f"/jobs/{first['id']}/tags", json={"tags": []}).json() == {"tags": []}
    assert _named(people.ann, "tag=z") == []


@pytest.mark.parametrize("bad", ["", " a", "a b", "-a", "ä", "a" * 51, "a,b", "<b>"])
def test_a_tag_is_one_word(api1: Api, people: People, bad: str) -> None:
    job = people.ann.submit()["id"]
    assert people.ann.call("PUT", f"/jobs/{job}/tags", json={"tags": [bad]}).status_code == 422
    assert people.ann.post("/jobs", people.ann.job_file(), params={"tag": bad}).status_code == 422
    assert people.ann.get("/jobs", params={"tag": bad}).status_code == 422


def test_tags_have_a_maximum(api1: Api, people: People) -> None:
    job, tags = people.ann.submit()["id"], [f"t{n}" for n in range(MAX_TAGS + 1)]
    assert people.ann.call("PUT", f"/jobs/{job}/tags", json={"tags": tags}).status_code == 422
    assert people.ann.post("/jobs", people.ann.job_file(), params={"tag": tags}).status_code == 422
    assert people.ann.call("PUT", f"/jobs/{job}/tags", json={"tags": tags[1:]}).status_code == 200


def test_the_same_key_with_other_tags_is_another_request(api1: Api, people: People) -> None:
    file, key = people.ann.job_file(), {"Idempotency-Key": "k"}
    answers = [people.ann.post(f"/jobs?tag={tag}", file, headers=key) for tag in ("a", "a", "b")]
    assert [answer.status_code for answer in answers] == [201, 201, 409]
    assert answers[0].json()["id"] == answers[1].json()["id"]


def test_the_pages_show_and_filter_tags(api1: Api, people: People) -> None:
    people.ann.post("/jobs?tag=night", people.ann.job_file(name="first"))
    job = people.ann.submit(name="second")["id"]
    log_in(api1, people.ann)
    listed = api1.client.get("/?tag=night").text
    assert "first" in listed
    assert job not in listed
    assert 'href="/?tag=night"' in api1.client.get("/").text
    assert "No jobs" in api1.client.get("/?tag=none").text


def test_a_clone_has_a_name_of_its_own(api: Api, people: People) -> None:
    """Guard: without `_renamed` four jobs had one name, and no command could tell them apart by it."""
    job = people.ann.submit(name="night train")["id"]
    key = {"Idempotency-Key": "k"}
    made = [people.ann.post(f"/jobs/{job}:clone", {}, headers=more).json() for more in ({}, {}, key, key)]
    assert [clone["name"] for clone in made] == [f"night train clone{n}" for n in ("", " 2", " 3", " 3")]
    assert made[2]["id"] == made[3]["id"]
    assert made[0]["spec"]["name"] == "night train clone"
    assert people.ann.post(f"/jobs/{job}:clone", {"name": "mine"}).json()["name"] == "mine"
    assert people.ann.post(f"/jobs/{made[0]['id']}:clone", {}).json()["name"] == "night train clone clone"
    longest = people.ann.submit(name="n" * 200)["id"]
    assert people.ann.post(f"/jobs/{longest}:clone", {}).json()["name"] == "n" * 180 + " clone"
