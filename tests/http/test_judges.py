"""Judge models over HTTP and on their page: keys that nobody sees, consent, and nothing that tells raters anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from orchestrator.adapters import private_networks
from orchestrator.adapters.endpoint_calls import INSIDE
from orchestrator.adapters.judge_client import WebJudge
from orchestrator.ports.judges import JudgeAddress
from orchestrator.services.judging import work
from tests.emulators.judge import Fault, JudgeEmulator, Seen, prefer
from tests.helpers.blind_crawl import ARMS, HTML, ORIGIN, POLICY, evaluated, invite, owner_sees
from tests.http.http_client import Api, ApiUser, People

KEY = "sk-canary-9f8e7d6c5b4a"


@pytest.fixture
def judge() -> Iterator[JudgeEmulator]:
    with JudgeEmulator() as running:
        running.key = KEY
        yield running


def added(judge: JudgeEmulator, caller: ApiUser, **how: Any) -> dict[str, Any]:
    wanted = {"name": "house", "url": judge.url, "model": judge.model, "key": KEY, "consent": True}
    answer = caller.post("/judge-endpoints", wanted | how)
    assert answer.status_code == 201, answer.text
    return answer.json()


def start(api: Api, caller: ApiUser, job: str, **how: Any) -> dict[str, Any]:
    """Start a judgement and work on it once."""
    answer = caller.post(f"/evaluations/{job}/judgements", {"endpoint": "house"} | how)
    assert answer.status_code == 201, answer.text
    work(api.app.judging, answer.json()["id"])
    return caller.get(f"/evaluations/{job}/judgements").json()["items"][0]


def test_a_judgement_over_http(api: Api, people: People, judge: JudgeEmulator) -> None:
    admin = people.admin
    made = added(judge, admin, consent=False)
    assert (made["has_key"], made["consented_at"], made["consented_by"]) == (True, None, "")
    job = evaluated(api, admin, 30)
    refused = admin.post(f"/evaluations/{job}/judgements", {"endpoint": "house"})
    assert (refused.status_code, "trainhop judge consent house" in refused.json()["detail"]) == (409, True)
    agreed = admin.post("/judge-endpoints/house:consent").json()
    assert (agreed["consented_by"], agreed["consented_at"] is not None) == ("admin", True)
    found = start(api, admin, job, max_tokens=3_000)
    assert (found["state"], found["requests"], found["is_hidden"]) == ("budget spent", 60, False)
    assert 0 < found["answered"] < 60
    path = f"/judgements/{found['id']}"
    more = admin.post(f"{path}:resume", {"max_tokens": 50_000}).json()
    assert (more["state"], more["reason"], more["max_tokens"]) == ("running", "", 50_000)
    assert admin.post(f"{path}:pause").json()["state"] == "paused"
    assert admin.post(f"{path}:resume", {}).json()["state"] == "running"
    work(api.app.judging, found["id"])
    (done,) = admin.get(f"/evaluations/{job}/judgements").json()["items"]
    assert (done["state"], done["answered"], done["advice"]) == ("done", 60, "ask people")
    assert done["conduct"]["inconsistent"]["value"] == 0.0
    assert (done["result"]["quality"], done["result"]["wins"]) == ("better", 20)
    kinds = [event["kind"] for event in admin.get(f"/jobs/{job}/events").json()["items"]]
    assert kinds[-2:] == ["evaluation.judging", "evaluation.judged"]
    assert len(judge.compared) == 60
    assert admin.call("DELETE", "/judge-endpoints/house").status_code == 204
    assert admin.get("/judge-endpoints").json()["items"] == []


@pytest.mark.parametrize(
    ("fault", "how", "words"),
    [
        (None, {"key": "sk-wrong"}, "The endpoint does not accept the key (401)."),
        (None, {"key": ""}, "The endpoint needs a key (401)."),
        (None, {"model": "judge-2"}, "There is no such model at this address, or the address is wrong (404)."),
        (Fault(body=b"<html>"), {}, "is not that of an OpenAI-compatible chat endpoint"),
        (Fault(body=b"<html>", kind="text/html"), {}, "is not that of an OpenAI-compatible chat endpoint"),
        (Fault(status=302, headers={"Location": "http://127.0.0.1:9/"}), {}, "redirects to another address"),
        (Fault(status=429, headers={"Retry-After": "9"}), {}, "The endpoint wants fewer requests (429)."),
        (Fault(status=500), {}, "The endpoint has a problem of its own (500)."),
        (Fault(status=400), {}, "The endpoint refuses the request (400)."),
        (Fault(cut=True), {}, "broke off"),
        (None, {"url": "http://127.0.0.1:9/v1"}, "The endpoint cannot be reached (ConnectError)."),
        (None, {"url": "https://a..b/v1"}, "The endpoint cannot be reached (UnicodeError)."),
        (None, {"url": "https://127.0.0.1/v\n1"}, "The endpoint cannot be reached (InvalidURL)."),
        (None, {"url": "ftp://127.0.0.1/v1"}, "The address must begin with https://"),
        (None, {"url": "https://"}, "The address must begin with https://"),
        (None, {"url": "https://ann:pw@127.0.0.1/v1"}, "without a user, a query or a fragment"),
        (None, {"url": "https://127.0.0.1/v1?key=pw"}, "without a user, a query or a fragment"),
        (None, {"url": "http://93.184.215.14/v1"}, "http:// sends key and answers unprotected"),
        (None, {"key": "two words"}, "A key is one word"),
    ],
)
def test_an_endpoint_is_tried_when_it_is_added(api1, people, judge, fault, how, words) -> None:
    """Guards: with `follow_redirects` the key went elsewhere; without the trial all of these were saved. Without
    `UnicodeError` in `ask`, a host with an empty label was answered with 500."""
    judge.trial_faults = [fault] if fault else []
    wanted = {"name": "house", "url": judge.url, "model": judge.model, "key": KEY}
    answer = people.admin.post("/judge-endpoints", wanted | how)
    assert (answer.status_code, words in answer.json()["detail"]) == (422, True), answer.text
    assert people.admin.get("/judge-endpoints").json()["items"] == []
    assert KEY not in answer.text
    assert "sk-wrong" not in answer.text


def test_only_an_admins_judge_is_in_the_servers_network(api1, people, judge) -> None:
    """Guard: with `anywhere` for all, a member read the answers of the server's own network."""
    wanted = {"name": "house", "url": judge.url, "model": judge.model, "key": KEY}
    refused = people.ann.post("/judge-endpoints", wanted)
    assert (refused.status_code, refused.json()["errors"]) == (422, [{"pointer": "/url", "detail": INSIDE}])
    assert judge.seen == []
    assert people.admin.post("/judge-endpoints", wanted).status_code == 201


def test_a_judge_that_moves_inside_is_not_called(api1, people, judge) -> None:
    """Guard: without `OutsideTransport` the request arrived."""
    answers = iter([["93.184.215.14"], ["127.0.0.1"]])
    api1.app.judge_client = WebJudge(lambda _: next(answers), private_networks.is_inside)
    wanted = {"name": "house", "url": judge.url.replace("http://127.0.0.1", "https://moves.example"), "model": "m"}
    refused = people.ann.post("/judge-endpoints", wanted)
    assert (refused.status_code, INSIDE in refused.json()["detail"]) == (422, True)
    assert judge.seen == []


def test_one_endpoint_of_a_member_is_tried_at_a_time(api1, people, judge) -> None:
    """Guard: without `_trial` a member with slow endpoints kept every thread of the server."""
    second: list[Any] = []
    wanted = {"name": "house", "url": judge.url, "model": judge.model, "key": KEY}

    def meanwhile(_: Seen) -> None:
        judge.before = lambda _: None
        second.append(people.admin.post("/judge-endpoints", wanted | {"name": "other"}))

    judge.before = meanwhile
    assert people.admin.post("/judge-endpoints", wanted).status_code == 201
    assert (second[0].status_code, "is being tried" in second[0].json()["detail"]) == (409, True)
    assert people.admin.post("/judge-endpoints", wanted | {"name": "other"}).status_code == 201


def test_names_and_numbers_of_endpoints_are_limited(api1, people, judge) -> None:
    added(judge, people.admin)
    wanted = {"name": "house", "url": judge.url, "model": judge.model, "key": KEY}
    assert people.admin.post("/judge-endpoints", wanted).status_code == 409
    assert people.admin.call("PATCH", "/judge-endpoints/house", json={"key": "sk-wrong"}).status_code == 422
    judge.key = "sk-new"
    assert people.admin.call("PATCH", "/judge-endpoints/house", json={"key": "sk-new"}).status_code == 200
    for bad in ({"name": ""}, {"name": "x" * 101}, {"model": ""}, {"url": "x" * 1_001}, {"key": "x" * 2_049}):
        assert people.admin.post("/judge-endpoints", wanted | bad).status_code == 422, bad
    for number in range(19):
        added(judge, people.admin, name=f"judge {number}", key="sk-new")
    full = people.admin.post("/judge-endpoints", wanted | {"name": "one more", "key": "sk-new"})
    assert (full.status_code, "at most 20" in full.json()["detail"]) == (409, True)


def _all_of(api: Api, caller: ApiUser, job: str, trained: str) -> Iterator[str]:
    """Everything that a page or an answer says of judges."""
    of_job = (f"/evaluations/{job}/judgements", f"/jobs/{job}/events", f"/jobs/{trained}")
    for path in ("/judge-endpoints", "/members", *of_job):
        yield caller.get(path).text
    headers = HTML | ORIGIN | {"Authorization": f"Bearer {caller.token}"}
    for page in (f"/evaluations/{job}/judge", f"/jobs/{job}", f"/jobs/{trained}", "/metrics"):
        yield api.client.get(page, headers=headers).text


def test_a_key_is_in_no_answer_page_log_or_table(api1, people, judge) -> None:
    """The endpoint repeats the key wherever it can. Guards: with the text of a verdict or an error kept, or the key in
    the address's repr, it was found. The column of the vault is found to prove the search."""
    admin, seen = people.admin, list[str]()
    with capture_logs() as logs:
        job = evaluated(api1, admin, 4)
        wanted = {"name": "house", "url": judge.url, "model": judge.model, "key": KEY, "consent": True}
        judge.key = "sk-other"
        seen.append(admin.post("/judge-endpoints", wanted).text)
        judge.key = KEY
        added(judge, admin)
        judge.conduct = lambda _: f"You sent {KEY}"
        judge.faults = [
            Fault(status=400, body=KEY.encode()),
            Fault(status=503, headers={"Retry-After": KEY}),
            Fault(status=401, body=KEY.encode(), headers={"WWW-Authenticate": KEY}),
            Fault(body=KEY.encode(), kind=KEY),
        ]
        start(api1, admin, job)
        seen += _all_of(api1, admin, job, job)
        form = {"name": "second", "url": judge.url, "model": "judge-2", "key": KEY}
        headers = HTML | ORIGIN | {"Authorization": f"Bearer {admin.token}"}
        again = api1.client.post(f"/evaluations/{job}/judge/endpoints", data=form, headers=headers)
        assert (again.status_code, "no such model" in again.text, "second" in again.text) == (422, True, True)
        seen.append(again.text)
        where = JudgeAddress(url=judge.url, model=judge.model, key=KEY, anywhere=True)
        seen.append(repr(where) + repr(admin.get("/judge-endpoints").json()))
    assert len(seen) > 10
    with api1.app.engine.connect() as connection:
        names = ["judge_endpoints", "judgements", "judge_answers", "events", "evaluations"]
        rows = [str(row) for name in names for row in connection.execute(text(f"SELECT * FROM {name}"))]
    assert any("gAAAA" in row for row in rows)
    for found in (*seen, *rows, json.dumps(logs, default=str)):
        assert KEY not in found, found


def test_a_judgement_tells_nothing_while_people_compare(api1, people, judge) -> None:
    """The crawl of the owner, with a finished judgement. Guard: without `is_hidden` advice and wins were in it."""
    judge.conduct = prefer("One")
    added(judge, people.admin, name="house")
    job = evaluated(api1, people.admin, 60)
    done = start(api1, people.admin, job)
    assert done["advice"] == "do not promote"
    answer = people.admin.post(f"/evaluations/{job}/comparisons", {})
    assert answer.status_code == 201, answer.text
    path = f"/comparisons/{answer.json()['id']}"
    rater = invite(api1, people.admin, path)
    for _ in range(3):
        assert rater.vote("tie").status_code == 303
    (hidden,) = people.admin.get(f"/evaluations/{job}/judgements").json()["items"]
    assert hidden["is_hidden"]
    assert [hidden[name] for name in ("advice", "result", "people", "family")] == [None] * 4
    seen = [*rater.seen, *owner_sees(people.admin, path, job)]
    assert any("People are comparing these answers" in text for text in seen)
    for one in seen:
        assert ARMS.search(one.replace(POLICY, "")) is None, one
        assert "do not promote" not in one
    headers = HTML | ORIGIN | {"Authorization": f"Bearer {people.admin.token}"}
    shown = api1.client.get(f"/jobs/{job}", headers=headers).text
    assert "do not promote" not in shown
    people.admin.post(f"{path}:close")
    assert "do not promote" in api1.client.get(f"/evaluations/{job}/judge", headers=headers).text


def test_the_owner_judges_with_forms(api1, people, judge) -> None:
    job = evaluated(api1, people.admin, 6)
    home, headers = f"/evaluations/{job}/judge", HTML | ORIGIN | {"Authorization": f"Bearer {people.admin.token}"}

    def send(path: str, **form: str):
        return api1.client.post(path, data=form, headers=headers, follow_redirects=True)

    form = {"name": "house", "url": judge.url, "model": judge.model}
    empty = api1.client.get(home, headers=headers).text
    assert "There are no endpoints yet" in empty
    assert "Add an endpoint below" in empty
    refused = send(f"{home}/endpoints", **form, key="sk-wrong")
    assert refused.status_code == 422
    assert "does not accept the key" in refused.text
    assert f'value="{judge.url}"' in refused.text
    assert "sk-wrong" not in refused.text
    assert "not given" in send(f"{home}/endpoints", **form, key=KEY).text
    (endpoint,) = people.admin.get("/judge-endpoints").json()["items"]
    agreed = send(f"{home}/endpoints/{endpoint['id']}/consent").text
    assert "admin, " in agreed
    assert send(home, endpoint=endpoint["id"], max_tokens="0").status_code == 422
    judge.lasting = Fault(status=401)
    started = send(home, endpoint=endpoint["id"], max_tokens="5000").text
    assert "Pause" in started
    (found,) = people.admin.get(f"/evaluations/{job}/judgements").json()["items"]
    work(api1.app.judging, found["id"])
    stopped = api1.client.get(home, headers=headers).text
    assert "does not accept the key (401)." in stopped
    judge.lasting = None
    send(f"/judgements/{found['id']}/resume", max_tokens="90000")
    assert "Paused by admin." in send(f"/judgements/{found['id']}/pause").text
    send(f"/judgements/{found['id']}/resume", max_tokens="90000")
    work(api1.app.judging, found["id"])
    done = api1.client.get(home, headers=headers).text
    assert "Advice: ask people" in done
    assert "judgement done" in api1.client.get(f"/jobs/{job}", headers=headers).text
    assert "There are no endpoints yet" in send(f"{home}/endpoints/{endpoint['id']}/remove").text
    stranger = headers | {"Authorization": f"Bearer {people.bob.token}"}
    assert api1.client.get(home, headers=stranger).status_code == 404
