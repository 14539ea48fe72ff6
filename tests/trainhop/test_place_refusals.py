"""Places and job files that a cell without a server refuses, each in words, before anything is trained."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import close_session

from tests.emulators.hub import HubEmulator, Repo
from tests.helpers import start_adapters
from trainhop import place_process
from worker.notebook import place_session
from worker.notebook.place_session import REFUSED, Events, WrongJobError
from worker.shared.checkpoint_file import sha256_file
from worker.shared.shared_places.chain import Chain
from worker.shared.shared_places.local_folder import LocalFolder
from worker.shared.start_adapter import StartAdapter

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # the Hub client's own way to upload
TOKEN = "hf_of_ann"


@pytest.fixture
def refusal(job: dict[str, Any], folder: Path) -> Iterator[Any]:
    """Runs the process of a cell here, and gives what its cell says."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def refused(address: str, **changes: Any) -> str:
        order = {"address": address, "name": "job.yaml", "job": job | changes, "folder": str(folder), "budget_s": 60.0}
        home = folder / "home"
        home.mkdir(exist_ok=True)
        (home / "order.json").write_text(json.dumps(order | {"writer": "me", "where": "here"}))
        (home / "events.jsonl").unlink(missing_ok=True)
        assert place_process.main(home / "order.json") == REFUSED
        events = [json.loads(line) for line in (home / "events.jsonl").read_text().splitlines()]
        (said,) = [event["refused"] for event in events if "refused" in event]
        return said

    yield refused
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def hub_of_ann(hub: HubEmulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubEmulator]:
    hub.accounts[TOKEN] = "ann"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    yield hub
    close_session()  # the client has one for all


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("/content/drive/MyDrive/run", "is a mounted Google Drive.*Write drive://FOLDER"),
        ("drive://run", "Google Drive needs a sign-in"),
        ("s3://bucket/run", "is not a kind of shared place"),
        ("hf://bob/run", "belongs to bob, but the token belongs to ann"),
        ("hf://ann/public", "is public, and anyone could read the run"),
    ],
)
def test_a_place_that_cannot_be_used_is_refused(
    address: str, words: str, refusal: Any, hub_of_ann: HubEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere")
    hub_of_ann.writes.add(Repo(id="ann/public", files={}), "ann")
    said = refusal(address)
    assert re.search(words, said), said
    assert "\n" not in said
    assert TOKEN not in said


@pytest.mark.parametrize(
    ("request_line", "fault", "words"),
    [
        ("GET /api/whoami", {"status": 401}, "the Hugging Face token may not write to ~/run"),
        ("POST .*/commit", {"status": 403}, "the Hugging Face token may not write to ann/run"),
        (
            "POST .*/commit",
            {"status": 403, "headers": {"X-Error-Message": "Private repository storage limit reached"}},
            "hf://ann/run is full",
        ),
    ],
)
def test_a_token_without_write_and_a_full_hub_are_named(
    request_line: str, fault: dict[str, Any], words: str, refusal: Any, hub_of_ann: HubEmulator
) -> None:
    hub_of_ann.rules.add(request_line, times=0, **fault)
    said = refusal("hf://~/run")
    assert said.startswith(words)
    assert "\n" not in said


def test_a_place_of_another_job_stays_as_it_is(author: Any, folder: Path) -> None:
    """Guards: without the comparison a changed file was trained as the old one, and without a look at HEAD another
    session's job was replaced. Before the first step, a job that nobody holds is."""
    kept, _ = author().resolved(folder)
    chain = Chain(LocalFolder(folder / "place"), writer="first", where="Tesla T4")
    chain.open(kept.model_dump_json().encode())
    chain.acquire()
    late, events = Chain(chain.place, writer="late"), Events(folder)
    assert place_session._job(late, author(), folder, events) == (kept, {})
    with pytest.raises(WrongJobError, match="has another job than this file") as refused:
        place_session._job(late, author(lora_r=8), folder, events)
    assert refused.value.args[1:] == ("lora_r: the place has 4, this file says 8",)
    assert place_session.read_job(late) == kept
    chain.release()
    changed, _ = place_session._job(late, author(lora_r=8), folder, events)
    assert place_session.read_job(late) == changed
    assert changed.spec.lora_r == 8


COPIES = '{"prompt": "what is the way", "completion": "it is the left one"}\n' * 5


def test_data_with_faults_is_refused_as_by_a_server(author: Any, refusal: Any, folder: Path) -> None:
    """Guard: without `refuse_stops` a file of copies was trained."""
    (folder / "rows.jsonl").write_text(COPIES + '{"prompt": "c", "completion": "d"}\n')
    with pytest.raises(WrongJobError, match=r"exact_duplicates.*accept_findings: \[exact_duplicates\]"):
        author().resolved(folder)
    job, _ = author(accept_findings=["exact_duplicates"]).resolved(folder)
    assert job.spec.accept_findings == ("exact_duplicates",)
    assert "exact_duplicates" in refusal(str(folder / "place"))


def test_a_job_continues_from_an_adapter_in_a_folder(author: Any, job: dict[str, Any], folder: Path) -> None:
    """Guard: without the archive among the data, sessions had no adapter to begin with."""
    begun = start_adapters.write(folder / "begun", base_model_name_or_path=job["base_model"])
    made, files = author(lora_model_dir="begun").resolved(folder)
    start = made.spec.lora_model
    assert isinstance(start, StartAdapter)
    assert [entry.sha256 for entry in made.data] == [each.sha256 for each in made.spec.files]
    assert files[start.sha256].stat().st_size == made.data[-1].size
    assert start.weights_sha256 == sha256_file(begun / "adapter_model.safetensors")
    assert (made.spec.lora_alpha, author(lora_model_dir="begun").differences(made)) == (8, [])
    start_adapters.write(begun, lora_alpha=16)
    (begun / "adapter_model.safetensors").write_bytes(b"others")
    assert author(lora_model_dir="begun").differences(made)[0].startswith("lora_model_dir: the place has ")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora_model_dir": "nowhere"}, "lora_model_dir: nowhere: there is no such folder"),
        ({"lora_model_dir": "job-x"}, "Without a server, name the folder of a PEFT adapter"),
        ({"excess_length_strategy": "split", "max_steps": None, "num_epochs": 1}, "set max_steps instead"),
        ({"evaluation": {}}, "evaluation"),
        ({"lora_target_parameters": ["mlp.experts.gate_up_proj"]}, "lora_target_parameters"),
    ],
)
def test_what_needs_a_server_or_the_models_files_is_said(
    changes: dict[str, Any], words: str, author: Any, folder: Path
) -> None:
    (folder / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    with pytest.raises((WrongJobError, ValueError), match=words):
        author(**changes).resolved(folder)


def test_long_texts_are_split_by_the_sessions(author: Any, folder: Path) -> None:
    (folder / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    made, _ = author().resolved(folder)
    assert made.spec.excess_length_strategy == "split"
    assert any("The first session counts their pieces" in note for note in made.notes)
    cut, _ = author(max_steps=None, num_epochs=2).resolved(folder)
    assert cut.spec.excess_length_strategy is None
    assert any("Texts longer than sequence_len are cut off" in note for note in cut.notes)


def test_new_tokens_are_part_of_the_job(author: Any, folder: Path) -> None:
    made, _ = author(tokens=["<call>"]).resolved(folder)
    assert made.spec.tokens == ("<call>",)
