"""What somebody gets wrong on the first day is said in plain words: settings, tokens, lengths, modules."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import save_file

from orchestrator.adapters.catalog import FolderAndHubCatalog
from orchestrator.domain.errors import InvalidError
from orchestrator.services.job_checks import notes, refuse_what_the_model_lacks
from trainhop import job_file
from trainhop.errors import Error
from worker.shared.job_spec import JobSpec
from worker.shared.spec_errors import explain

RAW = ("Input should", "should have", "Field required", "Extra inputs", "isoformat", "String should", "valid string")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_model": 5}, "must be text"),
        ({"lora_r": 0}, "must be at least 1"),
        ({"lora_r": 2.5}, "must be a whole number"),
        ({"learning_rate": "fast"}, "must be a number"),
        ({"adapter": "loha"}, "must be 'lora' or 'qlora'"),
        ({"name": "x" * 201}, "must have at most 200 characters"),
        ({"train_on_inputs": "perhaps"}, "must be true or false"),
        ({"sample_prompts": ["x"] * 17}, "must have at most 16 entries"),
        ({"checkpoint": 3}, "must be keys with values"),
        ({"deadline": "soon"}, "must be a time with its zone, for example 2026-12-01T18:00:00+01:00"),
        ({"deadline": "2026-12-01"}, "must be a time with its zone, for example 2026-12-01T18:00:00+01:00"),
        ({"datasets": [{"path": "x", "sha256": "1"}]}, "must be 64 characters of 0-9 and a-f"),
        (
            {"lora_target_modules": 5},
            "must be a list, or be 'all-linear' or a regular expression of at most 500 characters",
        ),
    ],
)
def test_a_job_file_is_refused_in_plain_words(changes: dict[str, object], words: str) -> None:
    """Guard: without `plain_errors` these were pydantic's own words."""
    spec = {"base_model": "tiny", "datasets": [{"path": "x"}], "max_steps": 1}
    with pytest.raises(ValidationError) as refused:
        JobSpec.model_validate(spec | changes)
    assert [sentence for _, sentence in explain(refused.value)] == [words]


def test_requests_are_refused_in_plain_words(api1, people) -> None:
    bad = [
        people.admin.post("/members", {"name": 5}),
        people.admin.post("/members", {"role": "king", "name": "x"}),
        people.admin.post("/tokens", {"member": "ann", "days": "soon"}),
        people.admin.post("/tokens", {"days": -1}),
        people.admin.get("/jobs?limit=many"),
        people.admin.post("/accounts", {"provider": "local", "config": {"slots": "two", "env": 5}}),
    ]
    assert {answer.status_code for answer in bad} == {422}
    assert [word for answer in bad for word in RAW if word in answer.text] == []


def test_an_unknown_setting_of_an_account_is_refused(api1, people) -> None:
    """Guard: without `_unknown` it was kept, had no effect, and nobody was told."""
    refused = people.admin.post("/accounts", {"provider": "local", "name": "p", "config": {"slot": 2}})
    assert refused.status_code == 422
    assert refused.json()["errors"] == [
        {"pointer": "/config/slot", "detail": "is not a setting; did you mean 'slots'?"}
    ]
    far = people.admin.post("/accounts", {"provider": "local", "name": "p", "config": {"xyzzy": 2}})
    assert "xyzzy: is not a setting; there are slots, session_s, env" in far.json()["detail"]


def _folder(folder: Path, **config: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    weights = {f"model.layers.0.self_attn.{name}.weight": np.zeros((2, 2)) for name in ("q_proj", "v_proj")}
    save_file(weights | {"model.norm.weight": np.zeros(2)}, folder / "model.safetensors")
    return folder


def _spec(**changes: object) -> JobSpec:
    return JobSpec.model_validate({"base_model": "x", "datasets": [{"path": "x"}], "max_steps": 3} | changes)


def test_what_the_model_lacks_is_refused_at_submit(tmp_path: Path) -> None:
    """Guard: without `refuse_what_the_model_lacks` the first session failed, after its download."""
    catalog = FolderAndHubCatalog([tmp_path], frozenset(), offline=True)
    table = catalog.model(str(_folder(tmp_path / "gpt2", model_type="gpt2", n_positions=512)))
    with pytest.raises(InvalidError, match="sequence_len: must be at most 512"):
        refuse_what_the_model_lacks(_spec(sequence_len=513), table)
    rope = catalog.model(str(_folder(tmp_path / "llama", model_type="llama", max_position_embeddings=512)))
    refuse_what_the_model_lacks(_spec(sequence_len=513, lora_target_modules=["q_proj", "self_attn.v_proj"]), rope)
    assert notes(_spec(sequence_len=512), rope) == ()
    assert "at most 512 tokens" in notes(_spec(sequence_len=513), rope)[0]
    with pytest.raises(InvalidError, match="no module 'qproj'; did you mean 'q_proj'"):
        refuse_what_the_model_lacks(_spec(lora_target_modules=["v_proj", "qproj"]), rope)
    with pytest.raises(InvalidError, match="there are q_proj, v_proj"):
        refuse_what_the_model_lacks(_spec(lora_target_modules=["zzz"]), rope)


def test_a_plan_says_which_length_counts(api1, people) -> None:
    """Guard: without `notes` two lengths in one file were accepted in silence."""
    sha256 = people.ann.upload().json()["sha256"]
    job = {"base_model": "tiny", "datasets": [{"path": f"sha256:{sha256}"}], "max_steps": 3}
    job["excess_length_strategy"] = "truncate"  # of texts that are split a plan says so
    assert people.ann.post("/jobs:plan", job).json()["notes"] == []
    both = people.ann.post("/jobs:plan", job | {"num_epochs": 2}).json()
    assert both["notes"] == ["num_epochs has no effect, because max_steps is set. The job has 3 steps."]
    asked = {"json": job | {"num_epochs": 2}, "headers": {"Idempotency-Key": "k"}}
    queued = people.ann.post("/jobs", **asked).json()
    assert queued["notes"] == both["notes"]
    assert people.ann.post("/jobs", **asked).json() == queued, "the notes of the first answer"
    again = people.ann.post(f"/jobs/{queued['id']}:clone", {"num_epochs": 2, "max_steps": 3}).json()
    assert again["notes"] == both["notes"]
    events = people.ann.get(f"/jobs/{queued['id']}/events").json()["items"]
    assert both["notes"][0] in [event["reason"] for event in events]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: 1\nb: \xff", r":2: this is not UTF-8 text"),
        (b"a: 1\nb: \x07", r":2:4: the character U\+0007 is not allowed"),
        (b"a: 2026-13-01", r"a date or a number is not valid \(month must be in 1..12\)\."),
        (b"a: " + b"9" * 5000, r"a date or a number is not valid \(Exceeds the limit \(\d+ digits\)"),
        (b"{" * 3000, "nested too deeply"),
    ],
)
def test_a_file_that_cannot_be_read_names_line_and_remedy(tmp_path: Path, content: bytes, words: str) -> None:
    """Guard: without these branches the words were Python's or YAML's, with a byte's offset for a line."""
    (tmp_path / "job.yaml").write_bytes(content)
    with pytest.raises(Error, match=words):
        job_file.read(tmp_path / "job.yaml")
