"""Blind comparisons over HTTP: what the owner sends and gets, what raters see, and what nobody learns too early."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from structlog.testing import capture_logs

from tests.helpers.blind_crawl import (
    ARMS,
    HTML,
    ORIGIN,
    VOTES,
    Rater,
    crawl,
    evaluated,
    invite,
    leaks,
    owner_sees,
    start,
)
from tests.helpers.evaluations import tasks
from tests.http.http_client import Api, People


def rate_all(raters: list[Rater], liked: str) -> int:
    given = 0
    while True:
        shown = [(rater, found) for rater in raters if (found := rater.answers())]
        if not shown:
            return given
        rater, answers = shown[given % len(shown)]
        assert rater.vote("1" if answers[0].startswith(liked) else "2").status_code == 303
        given += 1


def test_a_comparison_over_http(api: Api, people: People) -> None:
    path = start(api, people.ann, same=4, plan="small", question="Which is kinder?")
    raters = [invite(api, people.ann, path), invite(api, people.ann, path, "Ben")]
    before = people.ann.get(path).json()
    assert (before["prompts"], before["identical"], before["ratings"], before["result"]) == (60, 4, 0, None)
    assert 30 < before["more"] < 50
    assert rate_all(raters, "Another") >= 16
    found = people.ann.get(path).json()
    assert (found["ending"], found["decisive"], found["more"]) == ("decided", 16, 0)
    result = found["result"]
    assert (result["quality"], result["wins"], result["losses"], result["margin"]) == ("better", 16, 0, None)
    assert result["all_prompts"]["share"]["value"] == 1.0
    assert result["all_prompts"]["ties"] == 4
    assert sorted((r["name"], r["ratings"] > 0) for r in found["raters"]) == [("Ann", True), ("Ben", True)]
    assert "This comparison is closed. Thank you" in raters[0].page()
    (listed,) = people.ann.get(f"/evaluations/{found['evaluation']}/comparisons").json()["items"]
    assert (listed["id"], listed["ending"]) == (found["id"], "decided")


def test_no_model_is_named_before_the_end(api1: Api, people: People) -> None:
    """A crawl of all that raters and the owner get. Guards: with the model as a class, a key or a header it failed."""
    found = crawl(api1, people.ann)
    assert leaks(found) == []
    assert len(found.seen) > 60
    assert len(found.elsewhere) > 100
    open_now = people.ann.get(found.path).json()
    assert (open_now["closed_at"], open_now["result"], open_now["ratings"]) == (None, None, VOTES)
    for rater in found.raters:
        assert found.job not in "".join(rater.seen)
        assert found.path.rsplit("/", 1)[1] not in "".join(rater.seen)
    people.ann.post(f"{found.path}:close")
    assert all(ARMS.search(text) for text in owner_sees(people.ann, found.path, found.job) if "votes" in text)


def test_a_page_is_the_same_whichever_model_wrote_the_answers(api1: Api, people: People) -> None:
    """Guard: with a class, a length or an order that belongs to a model, the two pages differed by more than texts."""
    path = start(api1, people.ann)
    rater = invite(api1, people.ann, path)
    pages: dict[bool, set[str]] = {True: set(), False: set()}
    for _ in range(15):
        first = rater.answers()[0]
        text = re.sub(r'(value="|content=")[0-9a-f.]+"', "", rater.page())
        text = re.sub(r"(One|Another) text about \d+\.|Question \d+\?|\d+ prompts? rated", "", text)
        pages[first.startswith("One")].add(text)
        rater.vote("tie")
    assert pages[True] == pages[False]
    assert len(pages[True]) == 1


def test_a_rater_is_let_in_by_the_cookie_alone(api1: Api, people: People) -> None:
    """Guards: a vote without an Origin, or with another rater's cookie, is refused; looking at a link keeps it."""
    path = start(api1, people.ann)
    ann, ben = invite(api1, people.ann, path), invite(api1, people.ann, path, "Ben")
    for cookie in ("", ben.cookie, "trainhop-web-rater=wrong"):
        answer = Rater(api1, "", cookie=cookie, path=ann.path).call("GET", ann.path)
        assert answer.status_code == 404
        assert "This link does not work" in answer.text
    screen = re.search(r'name="screen" value="([^"]+)"', ann.page())
    assert screen
    body = {"screen": screen[1], "choice": "1"}
    for headers in ({}, {"Origin": "http://evil.example"}):
        answer = api1.client.post(ann.path, data=body, headers={"Cookie": ann.cookie} | headers)
        assert answer.status_code in (403, 404)
    unused = people.ann.post(f"{path}/raters", {"name": "Cy"}).json()["url"]
    looking = Rater(api1, unused)
    for _ in range(2):
        assert "Hello Cy" in looking.call("GET", unused[unused.index("/rate/") :]).text
    looking.open()
    again = looking.call("GET", unused[unused.index("/rate/") :])
    assert again.status_code == 409
    assert "was opened already, and it works once" in again.text
    assert f'href="{looking.path}"' in again.text
    assert people.ann.get(path).json()["ratings"] == 0


def test_a_revoked_link_and_a_late_vote_are_explained(api1: Api, people: People) -> None:
    path = start(api1, people.ann)
    ann, ben = invite(api1, people.ann, path), invite(api1, people.ann, path, "Ben")
    ann.vote("tie")
    rater = next(r["id"] for r in people.ann.get(path).json()["raters"] if r["name"] == "Ben")
    assert people.ann.call("DELETE", f"{path}/raters/{rater}").status_code == 204
    assert "This link does not work" in ben.call("GET", ben.path).text
    renewed = people.ann.post(f"{path}/raters/{rater}/link").json()
    assert renewed["name"] == "Ben"
    assert "Which answer is better?" in Rater(api1, renewed["url"]).open().page()
    screen = re.search(r'name="screen" value="([^"]+)"', ann.page())
    assert screen
    assert people.ann.post(f"{path}:close").json()["ending"] == "closed by its owner"
    late = ann.call("POST", ann.path, data={"screen": screen[1], "choice": "1"})
    assert late.status_code == 409
    assert "This comparison is closed. Your earlier votes are kept." in late.text
    assert people.ann.get(path).json()["ratings"] == 1


def test_exported_votes_are_safe_in_a_spreadsheet(api1: Api, people: People) -> None:
    path = start(api1, people.ann)
    rater = invite(api1, people.ann, path, "=Ann")
    rater.vote("tie", note="=1+1\r\n@x")
    refused = people.ann.get(f"{path}/votes")
    assert (refused.status_code, "after the comparison was closed" in refused.text) == (409, True)
    people.ann.post(f"{path}:close")
    line = json.loads(people.ann.get(f"{path}/votes").text)
    assert (line["choice"], line["note"], line["rater"], line["place"]) == ("tie", "=1+1\n@x", "=Ann", 1)
    assert list(line) == ["place", "prompt", "rater", "choice", "first", "outcome", "result", "note", "at"]
    answer = people.ann.get(f"{path}/votes", params={"format": "csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    (row,) = csv.DictReader(io.StringIO(answer.text))
    assert (row["note"], row["rater"]) == ("'=1+1\n@x", "'=Ann")


@pytest.mark.parametrize(
    "body",
    [
        {"plan": "endless"},
        {"gain": "speed"},
        {"margin": 0.1, "gain": "tasks"},
        {"margin": 0},
        {"margin": 0.5},
        {"question": ""},
        {"question": "x" * 501},
        {"seed": 1},
    ],
)
def test_settings_of_no_meaning_are_refused(api1: Api, people: People, body) -> None:
    job = evaluated(api1, people.ann)
    assert people.ann.post(f"/evaluations/{job}/comparisons", body).status_code == 422
    assert people.ann.get(f"/evaluations/{job}/comparisons").json()["items"] == []


def test_too_few_answers_and_a_change_too_late_are_explained(api1: Api, people: People) -> None:
    job = evaluated(api1, people.ann, 1)
    few = people.ann.post(f"/evaluations/{job}/comparisons", {})
    assert (few.status_code, "Evaluate more prompts." in few.json()["detail"]) == (422, True)
    path = start(api1, people.ann)
    changed = people.ann.call("PATCH", path, json={"plan": "small", "margin": 0.1}).json()
    assert (changed["plan"], changed["margin"], changed["gain"]) == ("small", 0.1, None)
    invite(api1, people.ann, path).vote("tie")
    late = people.ann.call("PATCH", path, json={"plan": "standard"})
    assert (late.status_code, "fixed since the first vote" in late.json()["detail"]) == (409, True)


def test_the_owner_starts_and_closes_it_with_forms(api1: Api, people: People) -> None:
    job = evaluated(api1, people.ann, tasks=tasks())
    home, headers = f"/evaluations/{job}/comparisons", HTML | ORIGIN | {"Authorization": f"Bearer {people.ann.token}"}

    def send(path: str, **form: str):
        return api1.client.post(path, data=form, headers=headers, follow_redirects=True)

    assert "Start a blind comparison" in api1.client.get(home, headers=headers).text
    assert send(home, question="Kinder?", plan="small", margin_percent="99").status_code == 422
    assert send(home, question="Kinder?", plan="small", margin_percent="", gain="tasks").status_code == 422
    shown = send(home, question="Kinder?", plan="small", margin_percent="10", gain="tasks").text
    assert "not worse by more than 10 % after 60 prompts, with a declared gain on the tasks" in shown
    assert people.ann.get(home).json()["items"][0]["gain"] == "tasks"
    path = f"/comparisons/{people.ann.get(home).json()['items'][0]['id']}"
    made = send(f"{path}/raters", name="Ann").text
    link = re.search(r'id="secret">(http[^<]+)<', made)
    assert link
    rater = Rater(api1, link[1]).open()
    rater.vote("tie", note="canary-note")
    found = people.ann.get(path).json()["raters"][0]["id"]
    assert "not opened" in send(f"{path}/raters/{found}/link").text
    assert "revoked" in send(f"{path}/raters/{found}/revoke").text
    closed = send(f"{path}/close").text
    assert "Not enough evidence" in closed
    assert "Start another blind comparison" in closed
    assert "canary-note" in api1.client.get(f"{path}/votes.csv", headers=headers).text
    assert "All comparisons of this evaluation" in send(home).text
    other = f"{home}?comparison=comparison-unknown"
    assert api1.client.get(other, headers=headers).status_code == 404
    stranger = headers | {"Authorization": f"Bearer {people.bob.token}"}
    for asked in (home, f"{path}/votes.csv"):
        assert api1.client.get(asked, headers=stranger).status_code == 404


def test_nothing_of_votes_and_answers_is_logged(api1: Api, people: People) -> None:
    with capture_logs() as logs:
        path = start(api1, people.ann)
        rater = invite(api1, people.ann, path)
        rater.vote("1", note="my-note")
        rater.call("POST", rater.path, data={"screen": "x", "choice": "1", "note": "my-note"})
        people.ann.post(f"{path}:close")
    said = json.dumps(logs, default=str)
    assert "my-note" not in said
    assert "text about" not in said
    assert rater.cookie.partition("=")[2] not in said
