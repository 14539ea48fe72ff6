"""Data checks over HTTP and on the submit page, with the real process."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import pytest

from orchestrator.services.running_checks import RunningChecks
from tests.helpers.data_checks import data_checks
from tests.http.http_client import Api, People

KEY = "hf_" + "aBcDeFgH" * 4 + "Zz"
ROWS = b"".join(
    json.dumps({"prompt": f"Where is number {n}?", "completion": f"It is behind door {n}."}).encode() + b"\n"
    for n in range(8)
)
BAD = ROWS + json.dumps({"prompt": "And the key?", "completion": f"It is {KEY}, I think."}).encode() + b"\n"
PAGE = {"Accept": "text/html", "Origin": "http://127.0.0.1"}


@pytest.fixture(autouse=True)
def checks(sqlite_app) -> Iterator[RunningChecks]:
    with data_checks() as running:
        sqlite_app.context = dataclasses.replace(sqlite_app.context, checks=running)
        yield running


def test_the_story_of_a_stop_over_rest(api1: Api, people: People, checks: RunningChecks) -> None:
    """From the upload to the clean copy. Another member sees nothing of it."""
    sha256 = people.ann.upload(BAD).json()["sha256"]
    report = people.ann.post(f"/datasets/{sha256}:check").json()
    (found,) = report["findings"]
    assert (found["check"], found["level"], found["lines"], report["checked"]) == ("secrets", "stop", [9], 9)
    assert found["samples"] == [{"line": 9, "text": "It is [Hugging Face token], I think."}]
    assert people.ann.get(f"/datasets/{sha256}/checks").json() == report
    for answer in (people.bob.get(f"/datasets/{sha256}/checks"), people.bob.post(f"/datasets/{sha256}:clean")):
        assert answer.status_code == 404

    job = people.ann.job_file(datasets=[{"path": f"sha256:{sha256}"}])
    planned = people.ann.post("/jobs:plan", job).json()
    assert [(f["check"], f["dataset"], f["accepted"]) for f in planned["findings"]] == [("secrets", 0, False)]
    refused = people.ann.post("/jobs", job)
    assert refused.status_code == 422
    assert refused.json()["type"] == "urn:trainhop:problem:data-findings"
    (fault,) = refused.json()["errors"]
    assert fault["pointer"] == "/datasets/0/path"
    assert fault["detail"].startswith("secrets: 1 of 9 rows (11 %) have a key that looks real")
    assert KEY not in refused.text + json.dumps(report) + json.dumps(planned)

    made = people.ann.post(f"/datasets/{sha256}:clean").json()
    assert (made["rows"], made["parent"]) == (8, sha256)
    listed = people.ann.get("/datasets").json()["items"]
    assert [(d["name"], d["parent"]) for d in listed if d["parent"]] == [("rows-clean.jsonl", sha256)]
    assert people.ann.submit(datasets=[{"path": f"sha256:{made['sha256']}"}])["spec"].get("accept_findings") is None

    accepted = people.ann.submit(datasets=[{"path": f"sha256:{sha256}"}], accept_findings=["secrets"])
    events = people.ann.get(f"/jobs/{accepted['id']}/events").json()["items"]
    assert ["secrets"] in [e["data"].get("checks") for e in events]
    wrong = people.ann.post("/jobs", job | {"accept_findings": ["secret"]}).json()
    assert wrong["errors"] == [
        {"pointer": "/accept_findings", "detail": "there is no check 'secret'; did you mean 'secrets'?"}
    ]


def test_a_file_that_is_still_being_checked_says_when_to_ask_again(
    api1: Api, people: People, checks: RunningChecks
) -> None:
    checks.submit_wait_s = 0.0
    checks.room.acquire()
    checks.room.acquire()
    try:
        sha256 = people.ann.upload(BAD).json()["sha256"]
        asked = people.ann.get(f"/datasets/{sha256}/checks")
        late = people.ann.post("/jobs", people.ann.job_file(datasets=[{"path": f"sha256:{sha256}"}]))
        planned = people.ann.post("/jobs:plan", people.ann.job_file(datasets=[{"path": f"sha256:{sha256}"}]))
    finally:
        checks.room.release()
        checks.room.release()
    for answer in (asked, late):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "15")
        assert "is still being checked" in answer.json()["detail"]
    assert planned.json()["unchecked"] == [f"sha256:{sha256}"]


def test_the_submit_page_refuses_and_makes_a_clean_copy(api1: Api, people: People) -> None:
    """Without JavaScript: the file is part of the form, and the answer has the button."""
    link = people.ann.post("/login-links").json()["url"]
    api1.client.get(link[link.index("/login") :])
    form = {"name": "n", "base_model": "org/small", "max_steps": "4", "sequence_len": "64", "data": ""}
    refused = api1.client.post("/submit", data=form, files={"file": ("rows.jsonl", BAD)}, headers=PAGE)
    assert refused.status_code == 422
    assert "have a key that looks real" in refused.text
    assert 'formaction="/submit/clean"' in refused.text
    sha256 = refused.text.partition('" selected>')[0].rpartition('value="')[2]
    again = api1.client.post("/submit/clean", data=form | {"data": sha256}, headers=PAGE)
    assert again.status_code == 200
    assert "rows-clean.jsonl · 8 rows · prompt_completion · clean copy" in again.text
    clean = again.text.partition('" selected>')[0].rpartition('value="')[2]
    plan = api1.client.post("/submit/plan", data=form | {"data": sha256}, headers=PAGE).text
    assert "Stop, <code>secrets</code>" in plan
    assert "[Hugging Face token]" in plan
    assert KEY not in plan + refused.text
    assert (
        "<code>secrets</code>" not in api1.client.post("/submit/plan", data=form | {"data": clean}, headers=PAGE).text
    )


def test_an_upload_is_compared_with_validation_rows(api1: Api, people: People) -> None:
    """Another member's file is not there to be compared with."""
    train, validation = people.ann.upload(BAD).json()["sha256"], people.ann.upload(ROWS[:71]).json()["sha256"]
    report = people.ann.post(f"/datasets/{train}:check?validation={validation}").json()
    found = {f["check"]: (f["level"], f["lines"], f["other_lines"]) for f in report["findings"]}
    assert found == {"leak": ("stop", [1], [1]), "secrets": ("stop", [9], []), "split": ("warn", [1], [])}
    assert not {"leak", "split", "shift"} & {each["check"] for each in report["not_checked"]}
    assert people.ann.get(f"/datasets/{train}/checks?validation={validation}").json() == report
    foreign = people.bob.upload(ROWS).json()["sha256"]
    assert people.ann.get(f"/datasets/{train}/checks?validation={foreign}").status_code == 404
    assert people.ann.get(f"/datasets/{train}/checks?validation=x").status_code == 422
