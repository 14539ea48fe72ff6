"""Every architecture in every format: the bits of PEFT's merge, and files that compute what they should."""

from __future__ import annotations

import pytest
import torch

from benchmarks.export.models import FAMILIES, make_adapter, make_model
from tests.export.conftest import Pairing
from worker.export.checks import agreement
from worker.export.gguf_reader import GgufFile
from worker.export.probe import logits, probe_tokens
from worker.export.tensor_files import TensorFolder, read_all

FORMS = [("merged", "bf16"), ("gguf", "fp16"), ("gguf", "q8_0"), ("gguf-adapter", None)]


def peft(pairing: Pairing, dtype: torch.dtype = torch.float32):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(pairing.base, dtype=dtype, attn_implementation="eager")
    return PeftModel.from_pretrained(model, pairing.adapter).eval()


def merged_by_peft(pairing: Pairing, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    merged = peft(pairing).merge_and_unload()
    left_out = {"lm_head.weight"} if merged.config.tie_word_embeddings else set()
    return {name: value.to(dtype) for name, value in merged.state_dict().items() if name not in left_out}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merge_has_the_bits_of_peft_and_computes_what_it_should(pairing, family, tmp_path) -> None:
    pair = pairing(family)
    pair.export(tmp_path / "out", "merged", "fp16")
    found = read_all(tmp_path / "out" / "model.safetensors")
    expected = merged_by_peft(pair, torch.float16)
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []
    # The reference of the check is a forward of our own. It is PEFT's.
    sources = pair.sources()
    tokens = probe_tokens(sources.tokenizer, sources.config.vocab_size)
    ours = logits(sources.config, sources.weights(with_adapter=False, onto="original"), tokens, sources.adapter.pairs)
    with torch.inference_mode():
        theirs = peft(pair)(input_ids=tokens).logits
    assert agreement(ours, theirs, 0.0).error < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_each_format_is_made_and_passes_its_check(pairing, family, tmp_path) -> None:
    """A failed check raises."""
    for form, kind in FORMS:
        report = pairing(family).export(tmp_path / f"{form}-{kind}", form, kind)
        assert report["check"]["tokens"] == 128
        assert report["check"]["adapter_effect"] > 10 * report["check"]["error"]
    settings = GgufFile(tmp_path / "gguf-adapter-None" / "adapter.gguf").settings
    assert settings["general.type"] == "adapter"
    assert settings["adapter.type"] == "lora"
    assert settings["adapter.lora.alpha"] == 8.0


def test_a_merged_folder_loads_in_transformers(llama, tmp_path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    llama.export(tmp_path / "out", "merged", "fp16")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    assert model.dtype == torch.float16
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template
    ids = tokenizer("It is a truth", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        found, expected = model.float()(ids).logits, peft(llama)(input_ids=ids).logits
    assert agreement(found, expected, 0.0).error < 1e-2


def test_rslora_and_patterns_scale_as_in_peft(pairing, tmp_path) -> None:
    base = pairing("llama").base
    options = {
        "use_rslora": True,
        "rank_pattern": {"o_proj": 8},
        "alpha_pattern": {"down_proj": 3, r"layers.0.self_attn.\w+_proj": 5},
    }
    pair = Pairing(base, make_adapter(tmp_path / "adapter", base, **options))
    pair.export(tmp_path / "out", "merged", "bf16")
    found, expected = read_all(tmp_path / "out" / "model.safetensors"), merged_by_peft(pair, torch.bfloat16)
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []
    # llama.cpp has one alpha for all modules, so the check fails if what differs is not in B.
    pair.export(tmp_path / "lora", "gguf-adapter")
    pair.export(tmp_path / "gguf", "gguf", "fp16")


def test_a_base_and_a_result_in_shards(pairing, tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    from worker.export.tensor_files import write_shards

    whole = pairing("qwen2")
    AutoModelForCausalLM.from_pretrained(whole.base).save_pretrained(tmp_path / "base", max_shard_size="200KB")
    assert len(list((tmp_path / "base").glob("model-*.safetensors"))) > 2
    Pairing(tmp_path / "base", whole.adapter).export(tmp_path / "a", "merged", "fp16")
    whole.export(tmp_path / "b", "merged", "fp16")
    one, other = TensorFolder(tmp_path / "a"), TensorFolder(tmp_path / "b")
    assert all(torch.equal(next(one.blocks(name)), next(other.blocks(name))) for name in other.names())
    (tmp_path / "c").mkdir()
    paths = write_shards(tmp_path / "c", one, torch.float16, encode=lambda _, block: block.half(), shard_bytes=100_000)
    assert len(paths) > 2
    again = TensorFolder(tmp_path / "c")
    assert set(again.names()) == set(one.names())
    assert all(torch.equal(next(again.blocks(name)), next(one.blocks(name))) for name in one.names())


def test_an_output_layer_of_its_own_is_merged(tmp_path) -> None:
    base = make_model(tmp_path / "base", "mistral")
    targets = ["q_proj", "lm_head"]
    pair = Pairing(base, make_adapter(tmp_path / "adapter", base, target_modules=targets))
    pair.export(tmp_path / "out", "merged", "fp16")
    found, expected = read_all(tmp_path / "out" / "model.safetensors"), merged_by_peft(pair, torch.float16)
    assert torch.equal(found["lm_head.weight"], expected["lm_head.weight"])
    pair.export(tmp_path / "lora", "gguf-adapter")


def test_values_beyond_fp16_give_bf16_or_a_refusal(tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    from worker.export.errors import ExportError

    base = make_model(tmp_path / "base", "mistral")
    tensors = load_file(base / "model.safetensors")
    tensors["model.embed_tokens.weight"][390] = 1e5
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    pair = Pairing(base, make_adapter(tmp_path / "adapter", base))
    assert pair.export(tmp_path / "out", "merged")["type"] == "bf16"
    for form in ("merged", "gguf"):
        with pytest.raises(ExportError, match="do not fit in fp16"):
            pair.export(tmp_path / "other", form, "fp16")


def test_activations_of_gemma_need_bf16(pairing, tmp_path) -> None:
    report = pairing("gemma2").export(tmp_path / "out", "merged")
    assert report["type"] == "bf16"
    assert any("activations" in note for note in report["notes"])
