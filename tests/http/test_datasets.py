"""Uploaded files: what one member says of the rows never changes what another one's job reads."""

from __future__ import annotations

import json
from pathlib import Path

from orchestrator.testing import FakeProvider
from tests.http.play import Api, Caller, Machine, People

BOTH = b'{"text": "t", "prompt": "p", "completion": "c"}\n' * 8


def type_of(caller: Caller, sha256: str, **dataset: str) -> str:
    entry = {"path": f"sha256:{sha256}"} | dataset
    answer = caller.post("/jobs", caller.job_file(datasets=[entry]))
    assert answer.status_code == 201, answer.text
    return answer.json()["spec"]["datasets"][0]["type"]


def test_the_same_bytes_are_read_as_each_job_says(api: Api, people: People) -> None:
    """Guards: without `_read_otherwise` Bob's own job was refused; with `row_format` among what the datasets' upsert changes
    his upload made texts of Ann's next job.
    """
    first = people.ann.upload(BOTH).json()
    again = people.bob.upload(BOTH, type="text").json()
    assert (first["type"], again["type"], again["sha256"]) == ("prompt_completion", "text", first["sha256"])
    sha256 = first["sha256"]
    assert people.ann.get(f"/datasets/{sha256}").json() == first
    assert type_of(people.ann, sha256) == "prompt_completion"
    assert type_of(people.bob, sha256, type="text") == "text"
    refused = people.bob.post("/jobs", people.bob.job_file(datasets=[{"path": f"sha256:{sha256}", "type": "messages"}]))
    assert refused.status_code == 422
    (fault,) = refused.json()["errors"]
    assert fault["pointer"] == "/datasets/0/path"
    assert "the uploaded rows are prompt_completion, the job says messages: line 1" in fault["detail"]


def test_half_a_character_in_a_row_is_the_files_fault(api1: Api, people: People) -> None:
    """Guard: without the look at each row's texts the upload was taken."""
    refused = people.ann.upload(b'{"text": "a"}\n' + json.dumps({"text": "\ud83d"}).encode())
    assert refused.status_code == 422
    assert "line 2: holds half a character" in refused.json()["detail"]


def test_a_clone_from_a_checkpoint_goes_on_with_the_rows_as_they_were_read(
    api1: Api, people: People, provider: FakeProvider, tmp_path: Path
) -> None:
    """Guard: without the comparison of types in `check_changes` it trained half its steps on other texts."""
    entry = {"path": f"sha256:{people.ann.upload(BOTH).json()['sha256']}"}
    job = people.ann.submit(datasets=[entry])["id"]
    machine = Machine.launched(api1, provider)
    machine.start()
    machine.save(4, tmp_path)
    path, changes = f"/jobs/{job}:clone", {"datasets": [entry | {"type": "text"}]}
    refused = people.ann.post(path, changes, params={"from": machine.head})
    assert refused.status_code == 422
    (fault,) = refused.json()["errors"]
    assert fault["pointer"] == "/datasets/0/type"
    assert fault["detail"].startswith("'text' here, 'prompt_completion' in the original: it decides what a row is")
    assert people.ann.post(path, changes).status_code == 201
