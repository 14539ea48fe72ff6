"""Members and their tokens: names that people can tell apart and read."""

from __future__ import annotations

import pytest

from tests.dashboard.test_pages import HTML, ORIGIN, log_in
from tests.http.http_client import Api, People


def test_a_name_is_kept_without_the_blanks_around_it(api1: Api) -> None:
    """Guard: without `strip` in `bodies.Name` there was an Ann and an Ann with a blank, and no page showed which."""
    assert api1.admin.post("/members", {"name": " Ann  "}).json()["name"] == "Ann"


@pytest.mark.parametrize("alike", ["ann", "ANN", "ａｎｎ"])
def test_names_that_look_the_same_are_one_name(api1: Api, alike: str) -> None:
    """Guard: without `_folded` a token for the wrong one of two was only a question of time."""
    api1.admin.post("/members", {"name": "Ann"})
    refused = api1.admin.post("/members", {"name": alike})
    assert (refused.status_code, refused.json()["detail"]) == (
        409,
        "There is already a member named Ann. Choose another name.",
    )


@pytest.mark.parametrize("name", ["An\u202en", "A\u200bnn", "Ann\u2028", "\u0085Ann", "A\x9bnn", "\ufeff"])
def test_signs_that_nobody_sees_are_refused(api1: Api, name: str) -> None:
    """Guard: without the look for them a name could be written backwards on every page, or be a second Ann."""
    refused = api1.admin.post("/members", {"name": name})
    assert refused.status_code == 422
    assert refused.json()["errors"] == [
        {"pointer": "/name", "detail": "must not contain control or invisible characters"}
    ]


def test_a_token_says_whose_it_is(api1: Api, people: People) -> None:
    """Guard: without the names an admin's list showed ids, which no one knows people by."""
    listed = {t["member"] for t in people.admin.get("/tokens").json()["items"]}
    assert listed == {"admin", "ann", "bob"}
    assert people.ann.post("/tokens", {}).json()["member"] == "ann"
    assert {t["member"] for t in people.ann.get("/tokens").json()["items"]} == {"ann"}


def test_an_account_that_waits_for_nothing_has_no_moment_to_wait_for(api1: Api, people: People) -> None:
    """Guard: without the look at 0 it waited for 1970."""
    assert people.admin.get("/accounts").json()["items"][0]["not_before"] is None


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/jobs?cursor=zzz", 422),
        ("/jobs?cursor=lease-1", 422),
        ("/sessions?cursor=job-1", 422),
        ("/jobs?cursor=job-1", 200),
        ("/sessions?cursor=lease-1", 200),
    ],
)
def test_a_cursor_is_one_or_is_refused(api1: Api, path: str, status: int) -> None:
    """Guard: without the patterns a wrong cursor was an empty page or all of them, and a loop that never ended."""
    assert api1.admin.get(path).status_code == status


def test_a_member_who_is_removed_is_out_at_once(api: Api, people: People) -> None:
    """Guards: without `auth.forget` in `remove_member` the token lived on for a second; without the line for channels
    in `SqlMemberRepository.remove` the address was kept.
    """
    job = people.ann.submit(name="anns")["id"]
    hook = {"url": "https://203.0.114.9/hook"}
    assert people.ann.post("/notifications", hook).status_code == 201
    people.ann.post("/accounts", {"provider": "cloud", "credentials": "x", "name": "anns"})
    log_in(api, people.ann)
    assert api.client.get("/people", headers=HTML).status_code == 200
    assert people.ann.call("DELETE", "/members/bob").status_code == 403
    refused = people.admin.call("DELETE", "/members/ann")
    assert (refused.status_code, job in refused.json()["detail"]) == (409, True)
    people.ann.post(f"/jobs/{job}:cancel")
    assert people.admin.call("DELETE", "/members/ann").status_code == 204
    assert people.ann.get("/me").status_code == 401
    assert api.client.get("/people", headers=HTML).status_code == 401
    with api.app.context.uow() as tx:
        assert tx.channels.all() == []
    assert [a["name"] for a in people.admin.get("/accounts").json()["items"]] == ["this-computer"]
    assert people.admin.get(f"/jobs/{job}").json()["member"] == "ann (removed)"
    listed = people.admin.get("/jobs", params={"member": "ann (removed)"}).json()["items"]
    assert [j["name"] for j in listed] == ["anns"]
    assert [d["member"] for d in people.admin.get("/datasets").json()["items"]] == ["ann (removed)"]
    assert {m["name"] for m in people.admin.get("/members").json()["items"]} == {"admin", "bob"}
    assert people.admin.call("DELETE", "/members/ann").status_code == 404


def test_the_page_removes_others_and_not_oneself(api1: Api, people: People) -> None:
    """Guard: without the comparison in the template every admin had a button that refuses."""
    members = {m["name"]: m["id"] for m in people.admin.get("/members").json()["items"]}
    log_in(api1)
    page = api1.client.get("/people", headers=HTML).text
    assert f'action="/people/{members["bob"]}/remove"' in page
    assert f'action="/people/{members["admin"]}/remove"' not in page
    done = api1.client.post(f"/people/{members['bob']}/remove", headers=HTML | ORIGIN, follow_redirects=False)
    assert (done.status_code, done.headers["location"]) == (303, "/people")
    assert people.bob.get("/me").status_code == 401
