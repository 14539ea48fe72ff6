"""Jobs that continue from an adapter: its values, exact over cuts, the reference of preference methods, refusals."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import preference_rows
from tests.helpers.training_runs import TrainingRuns, differing
from worker.shared import memory_estimate
from worker.shared.checkpoint_file import CheckpointError, sha256_file
from worker.shared.job_spec import JobSpec
from worker.shared.memory_estimate import Shape
from worker.shared.methods import METHODS
from worker.training.interface import Decision, PermanentError
from worker.training.methods import method_of
from worker.training.methods.reference import reference
from worker.training.methods.scored import ScoredMethod
from worker.training.state import trainable

WEIGHTS = "adapter_model.safetensors"
COMPARING = [name for name, method in METHODS.items() if method.has_reference]
SHAPES: list[dict[str, Any]] = [
    {"lora_dropout": 0.1},
    {"adapter": "qlora"},
    {"peft_use_dora": True, "peft_use_rslora": True},
    {"peft_trainable_token_indices": [1, 2]},
    {"lora_layers_to_transform": [1], "lora_target_modules": ["q_proj"]},
]


def named(archive: Path) -> dict[str, Any]:
    """What the server fills in for an archive."""
    with zipfile.ZipFile(archive) as packed:
        weights = hashlib.sha256(packed.read(WEIGHTS)).hexdigest()
    file = sha256_file(archive)
    return {"lora_model_dir": f"sha256:{file}", "lora_model": {"sha256": file, "weights_sha256": weights}}


def unpacked(archive: Path, folder: Path) -> dict[str, torch.Tensor]:
    with zipfile.ZipFile(archive) as packed:
        packed.extract(WEIGHTS, folder)
    return load_file(folder / WEIGHTS)


@pytest.fixture
def trained(training: TrainingRuns) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """Trains an adapter, which jobs of `training` then continue from. Returns its archive and the keys that name it."""

    def make(**changes: Any) -> tuple[Path, dict[str, Any]]:
        done = training.run(training.spec(**{"max_steps": 3, "seed": 7, **changes}))
        assert done.trained.adapter_zip is not None
        training.start = done.trained.adapter_zip.rename(training.folder / "start.zip")
        return training.start, named(training.start)

    return make


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_file_s_values_are_those_of_step_0(
    training: TrainingRuns, trained: Callable[..., tuple[Path, dict[str, Any]]], tmp_path: Path, shape: dict[str, Any]
) -> None:
    """Guard: without `fill` in `load` the adapter had the values that its seed draws."""
    archive, keys = trained(**shape)
    given = unpacked(archive, tmp_path / "given")
    # So low a rate changes no value in one step.
    spec = training.spec(**shape, **keys, max_steps=1, learning_rate=1e-30, warmup_ratio=0)
    again = training.run(spec)
    assert again.trained.adapter_zip is not None
    kept = unpacked(again.trained.adapter_zip, tmp_path / "kept")
    assert kept.keys() == given.keys()
    assert all(torch.equal(kept[name], given[name].float()) for name in given)
    assert again.manifest.recipe.lora_model_sha256 == keys["lora_model"]["weights_sha256"]


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_cuts_change_no_byte(
    training: TrainingRuns, trained: Callable[..., tuple[Path, dict[str, Any]]], shape: dict[str, Any]
) -> None:
    _, keys = trained(**shape)
    spec = training.spec(**shape, **keys, max_steps=5)
    whole, cut = training.run(spec), training.run(spec, [2])
    assert cut.trained.adapter_sha256 == whole.trained.adapter_sha256 is not None
    assert differing(cut.tensors, whole.tensors) == []
    assert cut.steps == whole.steps
    assert [hooks.restores[0][1] for hooks in cut.sessions] == ["exact", "exact"]


@pytest.mark.parametrize("method", COMPARING)
def test_the_reference_is_the_adapter_that_the_job_began_with(
    base: Path, tmp_path: Path, trained: Callable[..., tuple[Path, dict[str, Any]]], method: str
) -> None:
    """Guards: with the base model as reference the rewards of the first step were not 0; with a reference that is made
    from the restored values they were 0 again after a cut."""
    archive, keys = trained()
    runs = preference_rows.runs(method, base, tmp_path)
    runs.start = archive
    spec = runs.spec(**keys, rl=method, max_steps=5, global_batch_size=3, micro_batch_size=1)
    whole = runs.run(spec)
    first, last = whole.steps[0][1], whole.steps[-1][1]
    margins = {name: value for name, value in first.items() if "reward" in name}
    assert margins
    assert all(value == 0 for value in margins.values())
    assert any(last[name] != 0 for name in margins)
    cut = runs.run(spec, [1, 3])
    assert cut.trained.adapter_sha256 == whole.trained.adapter_sha256 is not None
    assert (differing(cut.tensors, whole.tensors), cut.steps) == ([], whole.steps)


def test_autocast_does_not_mix_up_the_reference(base: Path) -> None:
    """Guard: with the values exchanged in place of the objects, autocast went on with its 16-bit copies."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"]))
    tokens = torch.arange(1, 9)[None]
    start = {n: torch.nn.Parameter(torch.randn_like(p), requires_grad=False) for n, p in trainable(model).items()}
    own = dict(trainable(model))

    with torch.autocast("cpu", torch.bfloat16):
        before = model(tokens).logits
        with torch.no_grad(), reference(model, start):
            inside = model(tokens).logits
            assert trainable(model) == {}
        assert torch.equal(model(tokens).logits, before)
    assert not torch.equal(inside, before)
    assert all(own[name] is parameter for name, parameter in trainable(model).items())
    assert list(trainable(model)) == list(own)


def test_methods_say_the_same_of_their_reference() -> None:
    for name, method in METHODS.items():
        made = method_of(
            JobSpec.model_validate(
                {"base_model": "x", "datasets": [{"path": "x"}], "max_steps": 1}
                | ({"rl": name, "global_batch_size": 2} if name != "sft" else {})
            )
        )
        compares = isinstance(made, ScoredMethod) and made.compares_with_reference
        assert compares == method.has_reference, name


def test_the_frozen_copy_counts_as_memory(training: TrainingRuns) -> None:
    shape = Shape.read(training.base / "config.json")
    assert shape is not None
    keys = {"lora_model_dir": "job-1"}
    plain, more = (memory_estimate.gpu_bytes(training.spec(rl="dpo", **given), shape) for given in ({}, keys))
    assert more - plain == shape.lora_parameters(4) * 4
    assert memory_estimate.gpu_bytes(training.spec(**keys), shape) == memory_estimate.gpu_bytes(training.spec(), shape)


def test_other_bytes_are_refused_before_the_model_is_loaded(
    training: TrainingRuns, trained: Callable[..., tuple[Path, dict[str, Any]]]
) -> None:
    """Guard: without `verify_weights` a session trained on from another adapter."""
    _, keys = trained()
    other = keys | {"lora_model": keys["lora_model"] | {"weights_sha256": "0" * 64}}
    with pytest.raises(PermanentError, match=f"{WEIGHTS} is damaged: sha256 .*, expected 0000"):
        training.session(training.spec(**other))
    assert training.start is not None
    training.start.write_bytes(b"no archive")
    with pytest.raises(PermanentError, match="continues from cannot be used: The archive is damaged"):
        training.session(training.spec(**keys))


def test_an_adapter_of_other_modules_is_refused(
    training: TrainingRuns, trained: Callable[..., tuple[Path, dict[str, Any]]]
) -> None:
    """Guard: without the comparison of names, modules that the file lacks kept what their seed draws."""
    _, keys = trained(lora_target_modules=["q_proj"])
    with pytest.raises(PermanentError, match=r"does not fit .*v_proj.lora_A.weight: absent in the adapter, \[4"):
        training.session(training.spec(**keys, lora_target_modules=["q_proj", "v_proj"]))
    with pytest.raises(PermanentError, match=r"q_proj.lora_A.weight: \[4, \d+\] in the adapter, \[8, \d+\] here"):
        training.session(training.spec(**keys, lora_target_modules=["q_proj"], lora_r=8))


def test_a_checkpoint_of_another_start_is_refused(
    training: TrainingRuns, trained: Callable[..., tuple[Path, dict[str, Any]]]
) -> None:
    """Guard: without the field of the recipe the run went on as if it had begun elsewhere."""
    _, keys = trained()
    fresh = training.run(training.spec(max_steps=2))
    with pytest.raises(CheckpointError, match="lora_model_sha256"):
        training.session(training.spec(**keys, max_steps=2), resume=fresh.checkpoint)
    began = training.run(training.spec(**keys, max_steps=2))
    with pytest.raises(CheckpointError, match="lora_model_sha256"):
        training.session(training.spec(max_steps=2), resume=began.checkpoint, decisions={1: Decision.STOP})


def test_plain_peft_loads_the_result(
    training: TrainingRuns, trained: Callable[..., tuple[Path, dict[str, Any]]], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    _, keys = trained()
    done = training.run(training.spec(**keys, max_steps=2))
    assert done.trained.adapter_zip is not None
    with zipfile.ZipFile(done.trained.adapter_zip) as packed:
        packed.extractall(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| lora_model_sha256 | `{keys['lora_model']['weights_sha256']}` |" in card
    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(training.base), tmp_path / "out")
    values = load_file(tmp_path / "out" / WEIGHTS)
    loaded = {n.replace(".default", ""): p for n, p in model.named_parameters() if "lora_" in n}
    assert loaded.keys() == values.keys()
    assert all(torch.equal(loaded[name], values[name]) for name in values)
