"""Adapters that jobs continue from, over HTTP: the upload, whose it is, the page of the job, and the file it can be had
from again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tests.helpers import start_adapters as small


def test_an_upload_becomes_the_start_of_a_job(api1: Any, people: Any, tmp_path: Path) -> None:
    ann = people.ann
    base = ann.submit()["spec"]["base_model"]
    folder = small.write(tmp_path / "adapter", small.tensors(hidden=64), base_model_name_or_path=base)
    answer = ann.post("/adapters?name=mine", content=small.packed(folder))
    assert answer.status_code == 201, answer.text
    assert answer.json()["type"] == "adapter"
    path = f"sha256:{answer.json()['sha256']}"
    job = ann.submit(lora_model_dir=path)
    weights = hashlib.sha256((folder / small.WEIGHTS).read_bytes()).hexdigest()
    assert job["spec"]["lora_model"]["weights_sha256"] == weights
    refused = ann.post("/adapters?name=mine", content=b"no archive")
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/lora_model_dir")
    assert ann.get(f"/datasets/{answer.json()['sha256']}").status_code == 404
    assert [each["type"] for each in ann.get("/datasets").json()["items"]].count("adapter") == 1
