"""Audits over HTTP: what raters get and send, exports, and what other members see."""

from __future__ import annotations

import csv
import io
import json

import pytest
from structlog.testing import capture_logs

from tests.http.http_client import Api, People

ROWS = b"".join(b'{"prompt": "Who is %d?", "completion": "canary-%d"}\n' % (n, n) for n in range(30))


def started(people: People, **how) -> str:
    sha256 = people.ann.upload(ROWS).json()["sha256"]
    answer = people.ann.post(f"/datasets/{sha256}/audit", {"seed": 7, **how})
    assert answer.status_code == 201, answer.text
    return f"/datasets/{sha256}/audit"


def label(caller, audit: str, label: str, **more):
    row = caller.get(f"{audit}/next").json()["row"]
    body = {"unit": row["unit"], "label": label, **more}
    return caller.call("PUT", f"{audit}/rows/{row['place']}", json=body)


def test_an_audit_over_http(api: Api, people: People) -> None:
    audit = started(people, max_wrong=0.5, strata="source")
    first = people.ann.get(f"{audit}/next").json()["row"]
    assert [turn["role"] for turn in first["turns"]] == ["prompt", "completion"]
    assert first["turns"][1]["text"] == f"canary-{first['row'] - 1}"
    assert label(people.ann, audit, "wrong", source="https://example.org", note="no").status_code == 200
    found = label(people.ann, audit, "unsure").json()
    assert (found["labelled"], found["mine"], found["drawn"], found["rows"]) == (2, 2, 30, 30)
    assert (found["estimate"]["decided"], found["estimate"]["unsure"]) == (1, 1)
    assert found["standing"]["decision"] == "open"
    again = people.ann.get(f"{audit}/rows/{first['place']}").json()
    assert again["label"] == {"label": "wrong", "source": "https://example.org", "note": "no"}
    listed = people.ann.get("/datasets").json()["items"][0]
    assert listed["audit"] == people.ann.get(audit.removesuffix("/audit")).json()["audit"] == found["words"]
    assert listed["audit"].startswith("audit: 100 % wrong (")


def test_a_dataset_that_nobody_audited_is_called_not_audited(api1: Api, people: People) -> None:
    """Guard: no answer calls such a dataset clean."""
    made = people.ann.upload(ROWS, name="mine.jsonl").json()
    assert made["audit"] == "not audited"
    missing = people.ann.get(f"/datasets/{made['sha256']}/audit")
    assert (missing.status_code, missing.json()["detail"][:27]) == (404, "This dataset is not audited")
    job = people.ann.job_file(datasets=[{"path": f"sha256:{made['sha256']}"}])
    assert people.ann.post("/jobs:plan", job).json()["audits"] == ["mine.jsonl: not audited"]
    audit = started(people)
    assert people.ann.get(audit).json()["estimate"]["wrong"] == {"value": None, "low": 0.0, "high": 1.0}
    assert people.ann.get(audit).json()["words"] == "not audited"


def test_exports_are_safe_in_a_spreadsheet(api1: Api, people: People) -> None:
    audit = started(people)
    label(people.ann, audit, "wrong", note="=1+1", source="@x")
    line = json.loads(people.ann.get(f"{audit}/labels").text)
    assert (line["label"], line["note"], line["rater"]) == ("wrong", "=1+1", "ann")
    answer = people.ann.get(f"{audit}/labels", params={"format": "csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    (row,) = csv.DictReader(io.StringIO(answer.text))
    assert (row["note"], row["source"], row["place"]) == ("'=1+1", "'@x", "1")
    assert "canary" not in answer.text


@pytest.mark.parametrize(
    "body",
    [
        {"label": "clean"},
        {"note": "x" * 2_001},
        {"source": "x" * 501},
        {"note": "\ud800"},
        {"unit": "7" * 41},
        {"rows": 1},
    ],
)
def test_a_label_that_is_no_label_is_refused(api1: Api, people: People, body) -> None:
    audit = started(people)
    text = json.dumps({"unit": "0.1", "label": "correct"} | body)
    headers = {"Content-Type": "application/json"}
    answer = people.ann.call("PUT", f"{audit}/rows/0", content=text, headers=headers)
    assert answer.status_code == 422
    assert people.ann.get(audit).json()["labelled"] == 0


@pytest.mark.parametrize("how", [{"max_wrong": 0}, {"max_wrong": 1}, {"seed": -1}, {"seed": 2**53}, {"strata": "mood"}])
def test_settings_of_no_meaning_are_refused(api1: Api, people: People, how) -> None:
    sha256 = people.ann.upload(ROWS).json()["sha256"]
    assert people.ann.post(f"/datasets/{sha256}/audit", how).status_code == 422


def test_two_members_with_the_same_file_share_its_audit(api1: Api, people: People) -> None:
    audit = started(people)
    assert people.bob.get(audit).status_code == 404
    people.bob.upload(ROWS, name="bobs.jsonl")
    label(people.ann, audit, "correct")
    assert people.bob.get(audit).json()["labelled"] == 1
    assert people.bob.post(audit, {"seed": 9}).status_code == 409
    assert people.admin.get(audit).status_code == 404


def test_nothing_of_a_row_is_logged(api1: Api, people: People) -> None:
    with capture_logs() as logs:
        audit = started(people)
        label(people.ann, audit, "wrong", note="canary-note")
        people.ann.call("PUT", f"{audit}/rows/99", json={"unit": "0.1", "label": "wrong", "note": "canary-note"})
        people.ann.get(f"{audit}/labels")
    assert "canary" not in json.dumps(logs, default=str)


def test_a_vote_after_the_data_was_deleted_is_explained(api: Api, people: People) -> None:
    audit = started(people)
    row = people.ann.get(f"{audit}/next").json()["row"]
    label(people.ann, audit, "correct")
    assert people.ann.call("DELETE", audit.removesuffix("/audit")).status_code == 204
    body = {"unit": row["unit"], "label": "wrong"}
    late = people.ann.call("PUT", f"{audit}/rows/{row['place']}", json=body)
    assert late.status_code == 409
    assert "was deleted. Its labels are kept" in late.json()["detail"]
    assert people.ann.get(audit).json()["has_data"] is False
    assert people.ann.get(f"{audit}/labels").text.count("\n") == 1
