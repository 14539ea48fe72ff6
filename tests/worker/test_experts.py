"""LoRA on experts that a model keeps in one tensor: exact under cuts, refused in words, loaded by plain PEFT."""

from __future__ import annotations

import json
import re
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from benchmarks.tiny_model import make_tiny_mixture
from orchestrator.domain.errors import InvalidError
from orchestrator.ports.catalog import BaseModel
from orchestrator.services import job_checks
from tests.helpers.training_runs import TrainingRuns, differing
from worker.shared import checkpoint_file
from worker.shared.checkpoint_file import CheckpointError
from worker.shared.experts import FUSED, MOVED, MOVED_BY_PEFT, OPTIONAL
from worker.shared.export_spec import no_form
from worker.shared.job_spec import ENCODING, NUMERICS, JobSpec
from worker.shared.manifest import Recipe
from worker.shared.memory_estimate import Shape, gpu_bytes, need
from worker.shared.model_support import KNOWN
from worker.training import base_model
from worker.training.interface import Decision, PermanentError

NAMES = ("mlp.experts.down_proj", "mlp.experts.gate_up_proj")
NEWEST = {"encoding": ENCODING, "numerics": NUMERICS, "max_steps": 4}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("mixtures")
    return {family: make_tiny_mixture(folder / family, family) for family in ("Qwen3Moe", "Mixtral")}


@pytest.fixture
def mixture(training: TrainingRuns, models: dict[str, Path]) -> TrainingRuns:
    training.base = models["Qwen3Moe"]
    return training


@pytest.mark.parametrize("family", ["Qwen3Moe", "Mixtral"])
def test_experts_survive_cuts_and_load_with_plain_peft(training, models, tmp_path: Path, family: str) -> None:
    """Guards: without `target_parameters` in PEFT's settings the experts had no adapter; without the field of the
    recipe a checkpoint of other experts was loaded."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    training.base = models[family]
    spec = training.spec(**NEWEST, lora_target_parameters=NAMES, backend="auto")
    assert spec.library == "hf"
    whole, cut = training.run(spec), training.run(spec, [1, 3])
    assert cut.trained.adapter_zip.read_bytes() == whole.trained.adapter_zip.read_bytes()
    assert differing(cut.tensors, whole.tensors) == []
    assert {restore[1] for hooks in cut.sessions for restore in hooks.restores} == {"exact"}
    moved = [v for n, v in whole.tensors.items() if n.startswith("adapter.") and "experts" in n and "lora_B" in n]
    assert len(moved) == 4
    assert all(abs(values).max() > 0 for values in moved)

    with zipfile.ZipFile(whole.trained.adapter_zip) as packed:
        packed.extractall(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_parameters"] == list(NAMES)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(training.base), tmp_path).eval()
    values = dict(loaded.named_parameters())
    trained = {name.removeprefix("adapter."): v for name, v in whole.tensors.items() if name.startswith("adapter.")}
    assert {name for name in values if ".lora_" in name} == trained.keys()
    assert all((values[name].detach().numpy() == value).all() for name, value in trained.items())
    ids = torch.arange(3, 40)[None]
    expected = _by_hand(training.base, trained, ids)
    with torch.no_grad():
        found = loaded(input_ids=ids).logits
        with loaded.disable_adapter():
            assert (loaded(input_ids=ids).logits - found).abs().max() > 1e-3
    assert torch.allclose(found, expected, atol=1e-5)


def _by_hand(base: Path, trained: dict[str, Any], ids: torch.Tensor) -> torch.Tensor:
    """Logits of the base model whose weights have had the updates added, without PEFT."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    for name in [name for name in trained if ".lora_A." in name]:
        a, b = (torch.tensor(trained[name.replace("lora_A", half)]) for half in ("lora_A", "lora_B"))
        path = name.removeprefix("base_model.model.").partition(".lora_A")[0]
        if "experts" not in path:
            weight, update = model.get_parameter(f"{path}.weight"), b @ a
        else:  # the last parameter is outermost
            inner = path.endswith(".base_layer")
            weight = model.get_parameter(
                f"{path.removesuffix('.base_layer')}.{'gate_up_proj' if inner else 'down_proj'}"
            )
            experts = weight.shape[0]
            update = torch.einsum("ore,eri->eoi", b.view(len(b), -1, experts), a.view(experts, -1, a.shape[1]))
        weight.data += update * (32 / 4)
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def test_a_checkpoint_of_other_experts_is_refused(mixture: TrainingRuns) -> None:
    """Guard: see above."""
    spec = mixture.spec(**NEWEST, lora_target_parameters=NAMES[:1])
    _, hooks = mixture.session(spec, decisions={1: Decision.SAVE_AND_STOP})
    half = mixture.folder / "half.safetensors"
    checkpoint_file.write(half, hooks.snapshots[-1].tensors, hooks.snapshots[-1].manifest)
    for names in ((), NAMES):
        with pytest.raises(CheckpointError, match="lora_target_parameters"):
            mixture.session(mixture.spec(**NEWEST, lora_target_parameters=names), resume=half)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "mlp.experts.up_proj",
            "matches nothing in .* its experts are: mlp.experts.gate_up_proj, mlp.experts.down_proj",
        ),
        ("self_attn.q_proj.weight", "q_proj.weight is a linear layer; name it in lora_target_modules"),
        ("q_proj", "q_proj is a linear layer; name it in lora_target_modules"),
        ("embed_tokens.weight", "cannot have an adapter"),
        ("input_layernorm.weight", "cannot have an adapter"),
    ],
)
def test_other_parameters_are_refused_by_a_session(mixture: TrainingRuns, name: str, words: str) -> None:
    """Guard: without the check PEFT left the first one out, and trained the others or spoke of its own classes."""
    with pytest.raises(PermanentError, match=words):
        mixture.session(mixture.spec(**NEWEST, lora_target_parameters=(name,)))


def test_a_session_says_that_experts_get_no_adapter(mixture: TrainingRuns, caplog: pytest.LogCaptureFixture) -> None:
    """Guard: without the line nobody was told."""
    mixture.session(mixture.spec(**NEWEST), decisions={1: Decision.STOP})
    assert (
        "the experts of this model have no adapter, because they are not linear layers (model.layers.0" in caplog.text
    )
    caplog.clear()
    mixture.session(mixture.spec(**NEWEST, lora_target_parameters=NAMES), decisions={1: Decision.STOP})
    assert "experts" not in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora_dropout": 0.1}, "lora_target_parameters needs lora_dropout 0"),
        ({"peft_use_dora": True}, "lora_target_parameters needs no peft_use_dora"),
        ({"lora_layers_to_transform": (1,)}, "needs no lora_layers_to_transform; name the layers"),
        ({"backend": "unsloth"}, "backend unsloth does not train with lora_target_parameters"),
        ({"lora_target_parameters": NAMES[:1] * 2}, "must not name a parameter twice"),
        ({"lora_target_parameters": ("a b",)}, "lora_target_parameters"),
    ],
)
def test_what_peft_cannot_do_with_experts_is_refused(training, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        training.spec(**{"lora_target_parameters": NAMES} | changes)


def test_a_job_without_experts_names_none(training) -> None:
    """Guard: an older worker refuses keys that it does not know, and an older checkpoint names none."""
    assert "lora_target_parameters" not in training.spec().model_dump()
    plain = Recipe.of(training.spec())
    old = Recipe.model_validate(plain.model_dump(exclude={"lora_target_parameters"}))
    assert old == plain
    order = training.spec(lora_target_parameters=NAMES[::-1])
    assert order.lora_target_parameters == NAMES
    for form in ("merged", "gguf", "gguf-adapter"):
        assert "adapters of experts" in no_form(order.model_dump(mode="json"), form)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("qwen3_moe", {"lora_target_parameters": ["mlp.experts.gate_proj"]}, "no such experts"),
        (
            "mixtral",
            {"lora_target_parameters": ["self_attn.q_proj.weight"]},
            "'self_attn.q_proj.weight' is a linear layer",
        ),
        ("llama", {"lora_target_parameters": list(NAMES)}, "a llama model has no experts in one tensor"),
        (
            "qwen3_moe",
            {"lora_target_parameters": list(NAMES), "lora_target_modules": ["q_proj", "up_proj"]},
            "a qwen3_moe model cannot have an adapter on",
        ),
        ("qwen3_moe", {"lora_target_parameters": ["model.layers.7.mlp.experts.down_proj"]}, "no such experts"),
    ],
)
def test_experts_are_compared_with_the_model(kind: str, changes: dict[str, Any], words: str) -> None:
    """Guard: without the comparison a machine was taken."""
    with pytest.raises(InvalidError, match=words):
        job_checks.refuse_what_the_model_lacks(_spec(**changes), BaseModel(name="m", kind=kind, shape=_shape(kind)))
    for name in (*NAMES, "experts.down_proj", "down_proj", "mlp.gate.weight", "model.layers.1.mlp.experts.down_proj"):
        good = _spec(lora_target_parameters=[name])
        job_checks.refuse_what_the_model_lacks(good, BaseModel(name="m", kind="mixtral", shape=_shape("mixtral")))


def test_a_plan_says_what_becomes_of_experts() -> None:
    """Guard: only the log of a session told it."""
    model = BaseModel(name="m", kind="mixtral", shape=_shape("mixtral"))
    named, kept = job_checks.notes(_spec(adapter="qlora"), model)
    assert named.startswith("The experts of the base model get no adapter. Set lora_target_parameters: [mlp.experts.ga")
    assert kept == "The experts of the base model stay in 16 bits, because only linear layers are quantised."
    assert job_checks.notes(_spec(lora_target_parameters=list(NAMES)), model) == ()
    moved = BaseModel(name="m", kind="qwen3_moe", shape=_shape("qwen3_moe"))
    assert "may get the adapter of gate_proj" in job_checks.notes(_spec(), moved)[0]
    assert "get no adapter" in job_checks.notes(_spec(lora_target_modules=["q_proj"]), moved)[0]


def _spec(**changes: Any) -> JobSpec:
    return JobSpec.model_validate({"base_model": "m", "datasets": [{"path": "rows"}], "max_steps": 1, **changes})


def _shape(kind: str, **changes: Any) -> Shape:
    config = {"num_attention_heads": 32, "num_key_value_heads": 4, "hidden_size": 2048, "intermediate_size": 6144}
    config |= {"head_dim": 128, "num_hidden_layers": 4, "vocab_size": 4096, "model_type": kind, "num_experts": 128}
    config |= {"moe_intermediate_size": 768, "num_experts_per_tok": 8, "tie_word_embeddings": False}
    shape = Shape.of(config | changes)
    assert shape is not None
    return shape


def test_the_estimate_counts_experts_in_16_bits(models: dict[str, Path]) -> None:
    """Guard: a mixture counted as one dense layer, and experts as quantised. Measured on an H200: 8,174 MiB with rank
    32 on both tensors, 5,142 without an adapter on the experts, in bf16 at 1,024 tokens."""
    for folder in models.values():
        parameters = sum(v.numel() for v in _weights(folder).values())
        shape = Shape.read(folder / "config.json")
        assert shape is not None
        assert abs(shape.parameters - parameters) < 200  # the norms of queries and keys
    shape = _shape("qwen3_moe")
    common = {"sequence_len": 1024, "lora_r": 32, "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
    plain, named = gpu_bytes(_spec(**common), shape), gpu_bytes(_spec(**common, lora_target_parameters=NAMES), shape)
    assert plain / 2**20 == pytest.approx(5142, rel=0.1)
    assert named / 2**20 == pytest.approx(8174, rel=0.1)
    small = need(_spec(adapter="qlora"), shape, shape.parameters)
    assert min(small.gpu_bytes, small.host_bytes) > 2 * shape.expert_parameters
    dense = _shape("qwen3_moe", mlp_only_layers=[0, 1])
    assert dense.parameters - 2 * 3 * 2048 * 6144 == pytest.approx(
        shape.parameters - shape.expert_parameters / 2, abs=1
    )


def test_loading_counts_experts_in_16_bits(models: dict[str, Path]) -> None:
    """Guard: experts counted as 4-bit weights, so a session began to load what could not fit."""
    folder = models["Mixtral"]
    experts = sum(v.numel() for name, v in _weights(folder).items() if ".experts." in name)
    assert base_model.load_bytes("m", folder, quantised=True, precision="bf16") > 2 * experts


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_the_tables_of_experts_are_those_of_the_libraries() -> None:
    """A test of two tables that the server has without the libraries."""
    from peft.utils import transformers_weight_conversion as of_peft
    from transformers import conversion_mapping
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    mapping, patterns = of_peft._MOE_TARGET_MODULE_MAPPING, conversion_mapping._MODEL_TO_CONVERSION_PATTERN
    assert {kind for kind, pattern in patterns.items() if pattern in mapping and kind in KNOWN} == MOVED_BY_PEFT
    assert {name for names in mapping.values() for name in names} == MOVED
    spec = find_spec("transformers.models")
    assert spec is not None
    assert spec.origin is not None
    found: set[str] = set()
    for kind in KNOWN:
        folder = Path(spec.origin).parent / model_type_to_module_name(kind)
        code = folder / f"modeling_{folder.name}.py"
        if code.is_file() and re.search(r"self\.gate_up_proj = nn\.Parameter\(", code.read_text()):
            found.add(kind)
    assert found - OPTIONAL == FUSED.keys()
