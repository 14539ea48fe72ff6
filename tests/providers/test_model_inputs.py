"""The small files of a gated model, brought to machines that cannot call; its large ones are read where the hub
says."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from pathlib import Path

from orchestrator.ports.providers import LaunchRequest
from orchestrator.providers.colab import source
from tests.providers.kernels import ended, handle_of, kaggle_account, request
from worker.agent import boot
from worker.shared.messages import Grant, GrantKind

FILES = {"config.json": b'{"model_type": "llama"}', "added_tokens.json": b"{}", "special_tokens_map.json": b"{}"}
WEIGHTS = Grant(
    key="model/model.safetensors",
    kind=GrantKind.MODEL,
    url="https://cdn.example/model?Signature=s",
    sha256="0" * 64,
    size=9,
)


JUDGE = {"config.json": b'{"model_type": "qwen2"}', "added_tokens.json": b"{}"}


def with_models(launched: LaunchRequest) -> LaunchRequest:
    """The same launch, with a model of three small files, two of them alike, and weights to be fetched.

    The judge model has two files of the same names.
    """
    inputs = dict(launched.inputs)
    grants: dict[str, list[Grant]] = {"model": [WEIGHTS], "judge": []}
    for folder, files in (("model", FILES), ("judge", JUDGE)):
        for name, data in files.items():
            key, digest = f"{folder}/{name}", hashlib.sha256(data).hexdigest()
            grants[folder].append(Grant(key=key, kind=GrantKind.MODEL, sha256=digest, size=len(data)))
            inputs[key] = lambda data=data: iter([data])
    assert launched.assignment is not None
    assignment = launched.assignment.model_copy(update={name: tuple(found) for name, found in grants.items()})
    return dataclasses.replace(launched, assignment=assignment, inputs=inputs)


def test_kaggle_brings_each_file_under_its_own_name(provider, kaggle, works):
    """Guards: without `model` in `stage` the launch failed; without it in `place_inputs`, or with one slug for equal
    bytes, a file was not found."""
    works("""
import hashlib
for grant in given["model"] + given["judge"]:
    path = grant["path"] and pathlib.Path(grant["path"])
    is_equal = path and hashlib.sha256(path.read_bytes()).hexdigest() == grant["sha256"]
    print(grant["key"], is_equal, grant["url"], flush=True)
""")
    for _ in range(2):
        launched = with_models(request(kaggle_account("alice")))
        handle = handle_of(launched, provider.launch(launched))
        ended(provider, handle)
        said = [line for line in provider.follow(handle) if line.startswith(("model/", "judge/"))]
        assert said[0] == f"{WEIGHTS.key} None {WEIGHTS.url}"
        assert said[1:4] == [f"model/{name} True None" for name in FILES]
        assert said[4:6] == [f"judge/{name} True None" for name in JUDGE]
    assert len(kaggle.world.datasets) == 1 + len(FILES) + len(JUDGE)
    assert all(dataset.private for dataset in kaggle.world.datasets.values())


def test_colab_packs_them_with_the_rest(tmp_path: Path):
    """Guards: without `model` in `pack` it failed; without it in `place_inputs` the worker was not told where they
    lie."""
    launched = with_models(request(kaggle_account("alice")))
    source.pack(launched, tmp_path / "packed.zip", lambda _: b"")
    there = tmp_path / "there"
    zipfile.ZipFile(tmp_path / "packed.zip").extractall(there)
    plan = json.loads((there / "plan.json").read_text())
    assignment = plan["ticket"]["assignment"]
    assert boot.place_inputs(assignment, plan["files"], {name: there / name for name in plan["files"].values()}) == []
    grants = assignment["model"]
    assert grants[0]["url"] == WEIGHTS.url
    assert grants[0].get("path") is None
    assert {g["key"].removeprefix("model/"): Path(g["path"]).read_bytes() for g in grants[1:]} == FILES
    found = {g["key"].removeprefix("judge/"): Path(g["path"]).read_bytes() for g in assignment["judge"]}
    assert found == JUDGE
