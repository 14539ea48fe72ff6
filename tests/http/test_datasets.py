"""Uploaded files: what one member says of the rows never changes what another one's job reads."""

from __future__ import annotations

import gzip
import json
from io import BytesIO
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from orchestrator.testing import FakeClock, FakeProvider
from tests.http.http_client import Api, ApiUser, Machine, People
from worker.shared.job_spec import ENCODING

BOTH = b'{"text": "t", "prompt": "p", "completion": "c"}\n' * 8


def type_of(caller: ApiUser, sha256: str, **dataset: str) -> str:
    entry = {"path": f"sha256:{sha256}"} | dataset
    answer = caller.post("/jobs", caller.job_file(datasets=[entry]))
    assert answer.status_code == 201, answer.text
    return answer.json()["spec"]["datasets"][0]["type"]


def test_the_same_bytes_are_read_as_each_job_says(api: Api, people: People) -> None:
    """Guards: without `_read_otherwise` Bob's own job was refused; with `row_format` among what the datasets' upsert
    changes his upload made texts of Ann's next job.
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
    assert "The uploaded rows are prompt_completion, not messages: line 1" in fault["detail"]


def test_keys_that_training_does_not_use_are_named(api1: Api, people: People) -> None:
    """Guard: without `unused` in what the reader tells, an upload and a plan passed over them in silence."""
    row = {"text": "t", "id": 7, "note\n": "n"}
    brought = people.ann.upload((json.dumps(row) + "\n").encode() * 9_000).json()
    assert brought["unused_keys"] == ["id", "note\n"]
    entry = {"path": f"sha256:{brought['sha256']}"}
    assert people.ann.get(f"/datasets/{brought['sha256']}").json() == brought
    planned = people.ann.post("/jobs:plan", people.ann.job_file(datasets=[entry]))
    assert planned.json()["unused_keys"] == ["id", "note\n"]
    submitted = people.ann.submit(datasets=[entry])
    assert submitted["spec"]["encoding"] == ENCODING
    assert submitted["notes"][-1] == "Keys of the data that are not used in training: id, note."
    packed = BytesIO()
    parquet.write_table(pa.table({"text": [f"{n}" * 9 for n in range(9_000)], "id": list(range(9_000))}), packed)
    entry = {"path": f"sha256:{people.ann.upload(packed.getvalue(), name='rows.parquet').json()['sha256']}"}
    assert people.ann.post("/jobs:plan", people.ann.job_file(datasets=[entry])).json()["unused_keys"] == ["id"]
    refused = people.ann.upload(b'{"text": "t"}\n{"text": "t", "label": false}\n')
    assert "line 2: has label False, but every answer is taught as a good one" in refused.json()["detail"]


def test_half_a_character_in_a_row_is_the_files_fault(api1: Api, people: People) -> None:
    """Guard: without the look at each row's texts the upload was taken."""
    refused = people.ann.upload(b'{"text": "a"}\n' + json.dumps({"text": "\ud83d"}).encode())
    assert refused.status_code == 422
    assert "line 2: has an unpaired surrogate" in refused.json()["detail"]


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
    assert fault["detail"].startswith("'text' here, 'prompt_completion' in the original: it changes how rows are read")
    assert people.ann.post(path, changes).status_code == 201


def test_everybody_lists_and_deletes_what_they_brought(api: Api, people: People, clock: FakeClock) -> None:
    """Guards: without the member in `listing` Bob saw Ann's file; without `may_see` in `_owner` he could delete it;
    without `next` the second page was never found.
    """
    shas: list[str] = []
    for n in range(3):
        shas.append(people.ann.upload(b'{"text": "%d"}\n' % n, name=f"{n}.jsonl").json()["sha256"])
        clock.tick(1)
    people.bob.upload(b'{"text": "0"}\n', name="bobs.jsonl")
    first = people.ann.get("/datasets", params={"limit": 2}).json()
    rest = people.ann.get("/datasets", params={"limit": 2, "cursor": first["next"]}).json()
    assert [d["name"] for d in first["items"] + rest["items"]] == ["2.jsonl", "1.jsonl", "0.jsonl"]
    assert rest["next"] is None
    assert [(d["name"], d["member"], d["sha256"]) for d in people.bob.get("/datasets").json()["items"]] == [
        ("bobs.jsonl", "bob", shas[0])
    ]
    assert people.bob.get("/datasets", params={"member": "ann"}).json()["items"] == []
    assert len(people.admin.get("/datasets").json()["items"]) == 4
    assert len(people.admin.get("/datasets", params={"member": "ann"}).json()["items"]) == 3

    assert people.bob.call("DELETE", f"/datasets/{shas[1]}").status_code == 404
    assert people.bob.call("DELETE", f"/datasets/{shas[1]}", params={"member": "ann"}).status_code == 404
    assert people.admin.call("DELETE", f"/datasets/{shas[1]}").status_code == 404
    gone = people.admin.call("DELETE", f"/datasets/{shas[1]}", params={"member": "ann"})
    assert (gone.status_code, gone.content) == (204, b"")
    assert people.ann.get(f"/datasets/{shas[1]}").status_code == 404
    assert people.ann.call("DELETE", f"/datasets/{shas[0]}").status_code == 204
    assert people.bob.get(f"/datasets/{shas[0]}").status_code == 200
    assert [d["sha256"] for d in people.ann.get("/datasets").json()["items"]] == [shas[2]]


def test_a_file_is_not_deleted_under_a_job(api1: Api, people: People) -> None:
    job = people.ann.submit()
    sha256 = job["spec"]["datasets"][0]["sha256"]
    refused = people.ann.call("DELETE", f"/datasets/{sha256}")
    assert refused.status_code == 409
    assert f"({job['id']}) is queued and uses this file" in refused.json()["detail"]


def test_a_strangers_file_is_as_if_it_were_not_there(api1: Api, people: People) -> None:
    """Guard: with the hash as the only right Bob read Ann's rows from the number in her model card."""
    known, unknown = people.ann.upload(BOTH).json()["sha256"], "0" * 64

    def answers(sha256: str) -> list[tuple[int, str]]:
        job = people.bob.job_file(datasets=[{"path": f"sha256:{sha256}"}])
        said = [
            people.bob.get(f"/datasets/{sha256}"),
            people.bob.get(f"/datasets/{sha256}/preview"),
            people.bob.call("DELETE", f"/datasets/{sha256}"),
            people.bob.post("/jobs", job),
            people.bob.post("/jobs:plan", job),
        ]
        return [(one.status_code, one.json()["detail"].replace(sha256, "S").replace(sha256[:12], "s")) for one in said]

    assert answers(known) == answers(unknown)
    assert {status for status, _ in answers(known)} == {404, 422}
    assert people.ann.get(f"/datasets/{known}/preview").status_code == 200


def test_an_upload_is_read_with_the_names_that_it_gives(api1: Api, people: People) -> None:
    """A packed file in a process with limits. Guard: with `columns` not told, a client sent them again with the job."""
    rows = "".join(json.dumps({"frage": f"q{n}", "antwort": "a"}) + "\n" for n in range(9)).encode()
    columns = {"field_instruction": "frage", "field_output": "antwort"}
    brought = people.ann.upload(gzip.compress(rows), "rows.jsonl.gz", columns=json.dumps(columns)).json()
    assert (brought["type"], brought["rows"], brought["columns"]) == ("alpaca", 9, columns)
    entry = {"path": f"sha256:{brought['sha256']}"}
    assert people.ann.submit(datasets=[entry])["spec"]["datasets"][0]["rows"] == 9
    for wrong, words in (
        ("{field: [", "cannot be read as YAML or JSON"),
        ("[]", "must be a few keys with values"),
        ('{"field_mesages": "x"}', "unknown key 'field_mesages'; did you mean 'field_messages'?"),
        ('{"field": 1}', "field: must be text"),
        ('{"field_instruction": "frge", "field_output": "antwort"}', "no column 'frge'; did you mean 'frage'?"),
    ):
        refused = people.ann.upload(rows, columns=wrong or "{}")
        assert refused.status_code == 422
        assert words in refused.json()["detail"]


def test_texts_have_no_turns_to_choose(api1: Api, people: People) -> None:
    """Guard: without `_refuse_other_rows` the first session said it, on a machine that had been waited for."""
    entry = {"path": f"sha256:{people.ann.upload(BOTH, type='text').json()['sha256']}", "type": "text"}
    refused = people.ann.post("/jobs", people.ann.job_file(datasets=[entry | {"mask_history": True}]))
    assert refused.status_code == 422
    (fault,) = refused.json()["errors"]
    assert fault["pointer"] == "/datasets/0/mask_history"
    assert "plain texts have no turns. Remove the keys" in fault["detail"]
    chat = b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n' * 8
    entry = {"path": f"sha256:{people.ann.upload(chat).json()['sha256']}", "roles_to_train": ["user"]}
    assert people.ann.submit(datasets=[entry])["spec"]["datasets"][0]["roles_to_train"] == ["user"]
