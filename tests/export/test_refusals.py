"""What cannot be exported is refused in words before anything is written."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from benchmarks.export.models import make_adapter, make_model
from tests.export.conftest import Pairing
from worker.export.errors import ExportError
from worker.export.run import Form
from worker.export.sources import open_sources
from worker.export.vocabulary import read_vocabulary


@pytest.fixture
def copied(llama, tmp_path) -> Pairing:
    """A base and an adapter that a test may change."""
    shutil.copytree(llama.base, tmp_path / "base")
    shutil.copytree(llama.adapter, tmp_path / "adapter")
    return Pairing(tmp_path / "base", tmp_path / "adapter")


def change(path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(pair: Pairing, tmp_path, words: str, form: Form = "merged", **more) -> None:
    with pytest.raises(ExportError, match=words):
        pair.export(tmp_path / "out", form, **more)
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".out.*")) == []


def test_an_adapter_of_another_base(copied, tmp_path) -> None:
    make_model(tmp_path / "wide", "llama", hidden_size=96, head_dim=24)
    refused(
        Pairing(tmp_path / "wide", copied.adapter),
        tmp_path,
        r"another base model: model.layers.0.\S+ is \[64, 128\] in the adapter and \[96, 128\]",
    )
    make_model(tmp_path / "short", "llama", num_hidden_layers=1)
    refused(Pairing(tmp_path / "short", copied.adapter), tmp_path, "layers.1.* the base model does not have")


def test_a_base_with_other_weights_of_the_same_shape(copied, tmp_path) -> None:
    """The recipe names the hash of the base. Guard: without `check_hash` it was merged."""
    from worker.training.base_model import sha256

    card = copied.adapter / "README.md"
    card.write_text(
        f"---\n---\n\n| recipe | |\n|---|---|\n| adapter | `lora` |\n| base_sha256 | `{sha256(copied.base)}` |\n"
    )
    copied.export(tmp_path / "right", "gguf-adapter")
    make_model(tmp_path / "twin", "llama", seed=9)
    refused(Pairing(tmp_path / "twin", copied.adapter), tmp_path, "trained on another base model: its files have")


def test_a_rank_that_is_not_the_configs(copied, tmp_path) -> None:
    change(copied.adapter / "adapter_config.json", r=16)
    refused(copied, tmp_path, "another rank than its config says: .* says 16")


@pytest.mark.parametrize(
    ("change_of_config", "words"),
    [
        ({"peft_type": "IA3"}, "of the kind IA3; only LORA"),
        ({"use_dora": True}, "as matrices, and DoRA's magnitudes; the adapter is incomplete"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "LoRA on bare parameters, which cannot be exported"),
        ({"modules_to_save": ["lm_head"]}, "fully trained modules"),
        ({"bias": "all"}, "trained biases"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16 changed its base model"),
        ({"rank_pattern": {"(": 3}}, "a pattern that cannot be read"),
    ],
)
def test_an_adapter_that_is_more_than_lora(copied, tmp_path, change_of_config, words) -> None:
    change(copied.adapter / "adapter_config.json", **change_of_config)
    refused(copied, tmp_path, words)


def test_a_broken_adapter(copied, tmp_path) -> None:
    path = copied.adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    first = next(iter(tensors))
    tensors[first][0, 0] = float("nan")
    save_file(tensors, path)
    refused(copied, tmp_path, "not finite; the adapter is broken")
    del tensors[first]
    save_file(tensors, path)
    refused(copied, tmp_path, "the adapter is incomplete")
    path.write_bytes(path.read_bytes()[:-10])
    refused(copied, tmp_path, "is cut off; download it again")
    path.write_bytes(b"\xff" * 100)
    refused(copied, tmp_path, "not in safetensors format")
    path.unlink()
    refused(copied, tmp_path, "has no adapter_model.safetensors")
    (copied.adapter / "adapter_config.json").write_text("[")
    refused(copied, tmp_path, "cannot be read as JSON")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}, r"mixtral \(MixtralForCausalLM\) cannot"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"model_type": 3}, "type 3"),
        ({"quantization_config": {}}, "stored quantised"),
    ],
)
def test_an_unknown_architecture_is_named(copied, tmp_path, config, words) -> None:
    change(copied.base / "config.json", **config)
    for form in ("merged", "gguf", "gguf-adapter"):
        refused(copied, tmp_path, words, form)


def test_a_base_that_cannot_be_had(copied, tmp_path) -> None:
    nowhere = Pairing(tmp_path / "nowhere", copied.adapter)
    refused(nowhere, tmp_path, "not on this machine.*--base")
    by_id = Pairing("org/not-here", copied.adapter)  # type: ignore[arg-type]
    refused(by_id, tmp_path, "org/not-here.*--base")
    (copied.base / "model.safetensors").unlink()
    refused(copied, tmp_path, "no .safetensors weights")
    change(copied.adapter / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(ExportError, match="does not say what its base model is"):
        open_sources(copied.adapter, None, print)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000], ids=["cut off", "a list", "deep"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "tokenizer_config.json"])
def test_a_damaged_file_beside_the_weights(copied, tmp_path, name: str, text: str) -> None:
    """Guard: read without `read_object`, a damaged index or damaged settings ended the export with a traceback."""
    weights = copied.base / "model.safetensors"
    if "index" in name:
        weights.rename(copied.base / "model-00001-of-00001.safetensors")
    folder = copied.adapter if (copied.adapter / name).exists() and name != "config.json" else copied.base
    (folder / name).write_text(text)
    refused(copied, tmp_path, f"{name} (cannot be read as JSON|is not an object); ")


def test_an_index_without_a_map(copied, tmp_path) -> None:
    (copied.base / "model.safetensors").rename(copied.base / "model-00001-of-00001.safetensors")
    (copied.base / "model.safetensors.index.json").write_text("{}")
    refused(copied, tmp_path, "has no weight_map; download the model again")


def test_a_tied_output_layer_is_not_changed_alone(pairing, tmp_path) -> None:
    base = pairing("mistral").base
    pair = Pairing(base, make_adapter(tmp_path / "adapter", base, target_modules=["q_proj", "lm_head"]))
    tied = make_model(tmp_path / "tied", "mistral", tie_word_embeddings=True)
    refused(Pairing(tied, pair.adapter), tmp_path, "shares its weights with the embedding")


def test_choices_that_do_not_go_together(llama, tmp_path) -> None:
    refused(llama, tmp_path, "made with --format gguf", "merged", kind="q8_0")
    refused(llama, tmp_path, "leave --type and --onto out", "gguf-adapter", kind="fp16")
    refused(llama, tmp_path, "does not say that it was trained with qlora", "merged", onto="nf4")


def test_settings_that_llama_cpp_does_not_compute(tmp_path) -> None:
    cases = {
        "gemma2": ({"query_pre_attn_scalar": 20}, "query_pre_attn_scalar is 20"),
        "qwen2": ({"hidden_act": "gelu"}, "this model has gelu"),
        "mistral": ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "type dynamic"),
    }
    for family, (more, words) in cases.items():
        base = make_model(tmp_path / family, family, **more)
        pair = Pairing(base, make_adapter(tmp_path / f"{family}-adapter", base))
        refused(pair, tmp_path, words, "gguf")


def test_a_folder_that_exists_is_not_replaced(llama, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(ExportError, match="already exists"):
        llama.export(tmp_path / "out", "merged")
    assert (tmp_path / "out" / "mine").read_text() == "x"


def test_tokenizers_that_llama_cpp_does_not_have(llama, tmp_path) -> None:
    whole = json.loads((llama.base / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False, "trim_offsets": True}
    cases = [
        ({"model": {"type": "Unigram"}}, "of the kind Unigram"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}}, "way to split text: .*x\\+"),
        ({"model": whole["model"] | {"ignore_merges": False}}, "takes whole words first"),
    ]
    for number, (values, words) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "tokenizer.json").write_text(json.dumps(whole | values))
        with pytest.raises(ExportError, match=words):
            read_vocabulary(folder)
    with pytest.raises(ExportError, match="needs the tokenizer as tokenizer"):
        read_vocabulary(tmp_path)


def test_more_tokens_than_rows(tmp_path) -> None:
    base = make_model(tmp_path / "base", "llama", vocab_size=300)
    pair = Pairing(base, make_adapter(tmp_path / "adapter", base))
    refused(pair, tmp_path, r"has \d+ tokens and the base model only 300", "gguf")
