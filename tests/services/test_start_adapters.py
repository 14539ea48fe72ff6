"""Jobs that continue from an adapter, at the server: where it comes from, whose it is, and what is refused."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.domain.accounts import Role
from orchestrator.domain.errors import ConflictError, InvalidError, NotFoundError
from orchestrator.domain.jobs import Job
from orchestrator.ports.catalog import BaseModel
from orchestrator.services import clones, datasets, evaluations, jobs, start_adapters
from orchestrator.services.adapter_conflicts import is_same_model, refuse_other_model
from orchestrator.services.adapter_files import read_adapter
from orchestrator.services.reconcile import reconcile
from tests.helpers import start_adapters as small
from tests.helpers.world import World
from tests.services.test_evaluations import running, trained
from worker.shared.evaluation_spec import EvaluationSpec
from worker.shared.job_spec import JobSpec
from worker.shared.manifest import Recipe
from worker.shared.memory_estimate import Shape

SHAPE = Shape(hidden=8, intermediate=16, layers=2, vocabulary=32, heads=2, kv_heads=2, head_dim=4, tied=True)


def finished(world: World, who: str = "alice", tokens: tuple[str, ...] = (), **changes: Any) -> Job:
    """A job that has ended with a real adapter."""
    job = world.submit(who, 4, name="first", **({"tokens": tokens} if tokens else {}))
    worker = running(world)
    worker.step = 4
    assert worker.save().committed
    folder = small.write(world.folder / f"of-{job}", **changes)
    worker.finish(small.packed(folder), hashlib.sha256((folder / small.WEIGHTS).read_bytes()).hexdigest())
    reconcile(world.ctx)
    return world.job(job)


def uploaded(world: World, who: str = "alice", weights: dict[str, np.ndarray] | None = None, **changes: Any) -> str:
    """The `lora_model_dir` of an uploaded adapter."""
    archive = world.folder / "upload.zip"
    archive.write_bytes(small.packed(small.write(world.folder / "own", weights, **changes)))
    kept = start_adapters.bring(world.ctx, world.actors[who].member_id, archive, "own")
    return f"sha256:{kept.sha256}"


def test_a_job_continues_from_a_finished_one(world: World) -> None:
    """Guards: without `files` a machine got no adapter; without the pinned settings the job trained another shape."""
    first = finished(world)
    job = world.job(world.submit("alice", lora_model_dir=first.id))
    start = job.spec["lora_model"]
    assert (start["job"], start["name"], start["weights_sha256"]) == (first.id, "first", first.adapter_sha256)
    assert (job.spec["lora_r"], job.spec["lora_alpha"], job.spec["lora_target_modules"]) == (4, 8, ["q_proj", "v_proj"])
    assert Recipe.of(JobSpec.model_validate(job.spec)).lora_model_sha256 == first.adapter_sha256
    assignment = running(world).assignment
    assert assignment is not None
    assert len(assignment.datasets) == 2
    grant = assignment.datasets[-1]
    content = Path(grant.path or "").read_bytes()
    assert hashlib.sha256(content).hexdigest() == grant.sha256 == start["sha256"]
    with zipfile.ZipFile(BytesIO(content)) as archive:
        assert hashlib.sha256(archive.read(small.WEIGHTS)).hexdigest() == first.adapter_sha256
        assert sorted(archive.namelist()) == [small.CONFIG, small.WEIGHTS]


def test_a_job_needs_its_adapter_and_not_the_job_that_made_it(world: World) -> None:
    """Guard: without the `sha256` of `lora_model` the file of a queued job was deleted."""
    first = finished(world)
    job = world.submit("alice", lora_model_dir=first.id)
    jobs.delete(world.ctx, world.actors["alice"], first.id)
    sha256 = world.job(job).spec["lora_model"]["sha256"]
    with pytest.raises(ConflictError, match="uses this file"):
        datasets.delete_dataset(world.ctx, world.actors["alice"], sha256)
    copy = clones.clone(world.ctx, world.actors["alice"], job, {"seed": 7})
    assert copy.spec["lora_model"] == world.job(job).spec["lora_model"]
    for each in (job, copy.id):
        jobs.cancel(world.ctx, world.actors["alice"], each)
    datasets.delete_dataset(world.ctx, world.actors["alice"], sha256)
    with pytest.raises(ConflictError, match="was deleted"):
        jobs.retry(world.ctx, world.actors["alice"], job)
    with pytest.raises(InvalidError, match="There is no adapter"):
        clones.clone(world.ctx, world.actors["alice"], job, {})


def test_a_hash_or_an_id_gives_no_right(world: World) -> None:
    """Guards: with `seen_job` in place of `owned_job`, colleagues who may look could continue; without `get_of` anybody
    who had read a hash."""
    first, own = finished(world), uploaded(world)
    for path, words in ((first.id, "There is no job"), (own, "There is no adapter")):
        with pytest.raises(InvalidError, match=words) as refused:
            world.submit("bob", lora_model_dir=path)
        assert refused.value.problems[0][0] == "/lora_model_dir"
    world.actors["bob"] = replace(world.actors["bob"], team_sees_jobs=True)
    with pytest.raises(InvalidError, match=r"belongs to alice"):
        world.submit("bob", lora_model_dir=first.id)
    mine = uploaded(world, "bob")
    forged = {"sha256": mine[7:], "weights_sha256": "0" * 64, "name": "x", "job": trained(world)}
    found = world.job(world.submit("bob", lora_model_dir=mine, lora_model=forged)).spec["lora_model"]
    assert "job" not in found
    assert found["weights_sha256"] == first.adapter_sha256


def test_an_adapter_is_read_once(world1: World) -> None:
    """Guard: without `start_adapters` each plan unpacked it again."""
    first, own = finished(world1), uploaded(world1)
    plain = world1.job(world1.submit("alice", lora_model_dir=first.id)).spec["lora_model"]
    world1.submit("alice", lora_model_dir=own)
    for key in world1.ctx.start_adapters:
        (world1.store.folder / key).write_bytes(b"not read again")
    again = world1.job(world1.submit("alice", lora_model_dir=first.id)).spec["lora_model"]
    assert again == plain
    world1.submit("alice", lora_model_dir=own)


def test_an_adapter_whose_copy_was_deleted_is_kept_again(world1: World) -> None:
    """Guard: without `_has` the next job's adapter was the one that had been deleted."""
    first, alice = finished(world1), world1.actors["alice"]
    job = world1.submit("alice", lora_model_dir=first.id)
    jobs.cancel(world1.ctx, alice, job)
    sha256 = world1.job(job).spec["lora_model"]["sha256"]
    datasets.delete_dataset(world1.ctx, alice, sha256)
    world1.submit("alice", lora_model_dir=first.id)
    with world1.ctx.uow() as tx:
        assert tx.datasets.get_of(sha256, alice.member_id) is not None


def test_an_admin_clones_a_continued_job_of_another_member(world1: World) -> None:
    """Guard: without the adapter in `datasets_of` the admin, who has not uploaded it, was refused."""
    job = world1.job(world1.submit("alice", lora_model_dir=uploaded(world1)))
    copy = clones.clone(world1.ctx, replace(world1.actors["bob"], role=Role.ADMIN), job.id, {"seed": 7})
    assert copy.spec["lora_model"] == job.spec["lora_model"]


def test_an_adapter_is_no_file_of_rows(world1: World) -> None:
    own, alice = uploaded(world1), world1.actors["alice"]
    with pytest.raises(NotFoundError, match="is an adapter and has no rows"):
        datasets.dataset_by_id(world1.ctx, alice, own[7:])
    with pytest.raises(InvalidError, match="Use it as lora_model_dir"):
        world1.submit("alice", datasets=[{"path": own}])
    with pytest.raises(InvalidError, match="is a file of rows"):
        world1.submit("alice", lora_model_dir=f"sha256:{world1.dataset}")
    job = trained(world1)
    with pytest.raises(InvalidError, match="which the command line uploads"):
        world1.submit("alice", lora_model_dir="org/adapter")
    with pytest.raises(InvalidError, match="lora_model_dir: The archive is damaged"):
        world1.submit("alice", lora_model_dir=job)  # its archive is none
    queued = world1.submit("alice")
    with pytest.raises(InvalidError, match=r"has no adapter\. Name a job that has succeeded"):
        world1.submit("alice", lora_model_dir=queued)


def test_what_follows_a_continued_job_needs_no_start(world: World) -> None:
    """An evaluation keeps the recipe, but does not read the adapter that the training began with."""
    job = trained(world, lora_model_dir=uploaded(world))
    made = evaluations.evaluate(world.ctx, world.actors["alice"], job, EvaluationSpec()).job
    spec = JobSpec.model_validate(made.spec)
    begun = JobSpec.model_validate(world.job(job).spec)
    assert Recipe.of(spec).lora_model_sha256 == Recipe.of(begun).lora_model_sha256 != ""
    assert (len(begun.files), len(spec.files)) == (2, 1)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"lora_r": 8}, "/lora_r: 8 here, 4 in the adapter"),
        ({"lora_alpha": 16}, r"/lora_alpha: 16\S* here, 8 in the adapter"),
        ({"peft_use_dora": True}, "/peft_use_dora: True here, False"),
        ({"peft_use_rslora": True}, "/peft_use_rslora: True here, False"),
        ({"lora_layers_to_transform": [1]}, r"/lora_layers_to_transform: \[1\] here, \[\]"),
        ({"lora_target_modules": ["q_proj"]}, "/lora_target_modules: q_proj here, q_proj, v_proj in the adapter"),
        ({"lora_target_modules": "all-linear"}, "/lora_target_modules: all-linear here"),
        ({"lora_target_modules": r".*\.q_proj"}, "/lora_target_modules: .* here, q_proj, v_proj"),
        ({"lora_target_modules": ["v_proj", "q_proj"], "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.1}, ""),
        ({"lora_target_modules": r".*\.(q|v)_proj"}, ""),
    ],
)
def test_a_value_of_the_file_must_be_the_adapter_s(world1: World, keys: dict[str, Any], words: str) -> None:
    """Guard: without `conflicts` the adapter was loaded with another scale."""
    path = uploaded(world1)
    if not words:
        spec = world1.job(world1.submit("alice", lora_model_dir=path, **keys)).spec
        assert spec["lora_dropout"] == keys.get("lora_dropout", 0)
        return
    with pytest.raises(InvalidError) as refused:
        world1.submit("alice", lora_model_dir=path, **keys)
    assert any(re.search(words, f"{pointer}: {fault}") for pointer, fault in refused.value.problems)
    assert "the job takes the adapter's" in str(refused.value)


def broken(kind: str) -> dict[str, Any]:
    """A change of the weights."""
    weights = small.tensors()
    name = f"{small.PREFIX}.0.self_attn.q_proj.lora_A.weight"
    if kind == "nan":
        weights[name][1, 2] = np.nan
    elif kind == "half":
        del weights[name]
    elif kind == "unknown":
        weights["base_model.model.classifier.weight"] = np.zeros((2, 2), np.float32)
    elif kind == "integers":
        weights[name] = weights[name].astype(np.int32)
    elif kind == "head":
        weights |= {f"base_model.model.lm_head.lora_{half}.weight": weights[name] for half in "AB"}
    elif kind == "fp16":
        weights = {key: value.astype(np.float16) for key, value in weights.items()}
        weights[name][0, 0] = np.inf
    return {"weights": weights}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (broken("nan"), "NaN or infinite"),
        (broken("fp16"), "NaN or infinite"),
        (broken("half"), "does not have the tensors of LoRA"),
        (broken("unknown"), "classifier.weight, which LoRA does not have"),
        (broken("integers"), "is of the type I32"),
        (broken("head"), "adapts the head"),
        ({"r": 8}, "says r: 8"),
        ({"peft_type": "IA3"}, "is of the kind IA3"),
        ({"use_dora": True}, "does not have the tensors of LoRA"),
        ({"modules_to_save": ["lm_head"]}, "was made with modules_to_save"),
        ({"rank_pattern": {"q_proj": 8}}, "was made with rank_pattern"),
        ({"a_new_option": True}, "was made with a_new_option"),
        ({"bias": "all"}, "has trained biases"),
        ({"init_lora_weights": "pissa_niter_4"}, "has changed the base model"),
    ],
)
def test_adapters_of_other_kinds_are_refused(world1: World, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        uploaded(world1, **changes)


def test_a_pickle_and_a_broken_archive_are_refused(world1: World) -> None:
    folder = small.write(world1.folder / "old")
    (folder / small.WEIGHTS).rename(folder / "adapter_model.bin")
    archive = world1.folder / "old.zip"
    for content, words in (
        (small.packed(folder), "are a pickle .* which is never read; save it again"),
        (b"nothing", "The archive is damaged"),
    ):
        archive.write_bytes(content)
        with pytest.raises(InvalidError, match=words):
            start_adapters.bring(world1.ctx, "alice", archive, "old")
    cut = small.write(world1.folder / "cut")
    (cut / small.WEIGHTS).write_bytes((cut / small.WEIGHTS).read_bytes()[:-4])
    archive.write_bytes(small.packed(cut))
    with pytest.raises(InvalidError, match="is damaged or cut off"):
        start_adapters.bring(world1.ctx, "alice", archive, "cut")


def modules(layers: int = 2, *more: str) -> frozenset[str]:
    names = (f"model.layers.{layer}.self_attn.{name}" for layer in range(layers) for name in ("q_proj", "v_proj"))
    return frozenset((*names, "model.vision.layers.0.q_proj", *more))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"name": "org/other"}, "was trained on tiny, and base_model is org/other. Set base_model"),
        ({"shape": replace(SHAPE, hidden=16)}, "is for a hidden size of 8 .*, and tiny has 16"),
        ({"shape": replace(SHAPE, layers=1)}, "has layer 1, and tiny has 1 layers"),
        ({"modules": frozenset({"transformer.h.0.attn"})}, "which tiny does not have"),
        ({"modules": modules(3), "shape": None}, "does not adapt model.layers.2.self_attn.q_proj, although"),
        ({"modules": modules()}, ""),
        ({"modules": modules(3), "kind": "mixtral", "shape": None}, None),
    ],
)
def test_another_base_model_is_refused(tmp_path: Path, model: dict[str, Any], words: str | None) -> None:
    """Guard: without `refuse_other_model` in `resolve` a machine was taken first."""
    files = read_adapter(small.write(tmp_path / "adapter"))
    spec = JobSpec.model_validate({"base_model": "tiny", "datasets": [{"path": "x"}], "max_steps": 1})
    found = BaseModel(**{"name": "tiny", "shape": SHAPE, **model})
    if words:
        with pytest.raises(InvalidError, match=words):
            refuse_other_model(spec, files, found)
    elif words == "":
        refuse_other_model(spec, files, found)


def test_the_base_model_is_compared_at_submission(world1: World) -> None:
    path = uploaded(world1, base_model_name_or_path="org/other")
    with pytest.raises(InvalidError, match="was trained on org/other, and base_model is tiny"):
        world1.submit("alice", lora_model_dir=path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lora_target_parameters", ["mlp.experts.down_proj"]),
        ("tokens", ["<x>"]),
        ("added_tokens_overrides", {"3": "x"}),
    ],
)
def test_what_a_new_adapter_alone_can_have(world1: World, key: str, value: Any) -> None:
    """Guard: without `_NOT_CONTINUED` a machine was taken first, and tokens had other numbers than in the adapter."""
    with pytest.raises(InvalidError, match=f"{key}: cannot be used with lora_model_dir"):
        world1.submit("alice", lora_model_dir=uploaded(world1), **{key: value})


def test_an_adapter_with_added_tokens_is_not_continued(world1: World) -> None:
    first = finished(world1, tokens=("<x>",))
    with pytest.raises(InvalidError, match="has added tokens, and a job cannot continue from such an adapter"):
        world1.submit("alice", lora_model_dir=first.id)


@pytest.mark.parametrize(
    ("adapters", "jobs_own", "same"),
    [
        ("org/Model@main", "org/model@0123", True),
        ("unsloth/llama-3.2-1b-instruct-unsloth-bnb-4bit", "unsloth/Llama-3.2-1B-Instruct", True),
        ("unsloth/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-1B-Instruct@abc", True),
        ("/content/model", "/home/me/models/model", True),
        ("org/model", "other/model", False),
        ("unsloth/llama-3.2-1b", "meta-llama/Llama-3.2-1B-Instruct", False),
    ],
)
def test_names_of_one_model(adapters: str, jobs_own: str, same: bool) -> None:
    assert is_same_model(adapters, jobs_own) == same


def test_the_same_adapter_is_kept_once(world1: World) -> None:
    first = finished(world1)
    job = world1.job(world1.submit("alice", lora_model_dir=first.id))
    assert uploaded(world1) == job.spec["lora_model_dir"]
    assert json.dumps(job.spec).count(job.spec["lora_model"]["sha256"]) == 2
