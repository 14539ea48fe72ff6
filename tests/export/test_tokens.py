"""Adapters with trained and new tokens: the table grows and its rows are replaced, in merged and GGUF models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.export.models import byte_level, make_adapter, make_model
from tests.export.conftest import Pairing
from worker.export.errors import ExportError

NEW = ["<call>", "</call>"]


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tokens(request: pytest.FixtureRequest, tmp_path: Path) -> Pairing:
    """Token 5 and two new ones, with the tokenizer that has them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = make_model(tmp_path / "base", "llama", vocab_size=len(byte_level()), tie_word_embeddings=request.param)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(NEW)
    plain: Any = AutoModelForCausalLM.from_pretrained(base)
    rows = plain.get_input_embeddings().weight.shape[0]
    ids = [*range(rows, len(tokenizer))]
    assert len(ids) == 2
    places = {"embed_tokens": [5, *ids]} | ({} if request.param else {"lm_head": ids})
    folder = make_adapter(tmp_path / "adapter", base)
    path, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    chance = torch.Generator().manual_seed(3)
    names = {"embed_tokens": "model.embed_tokens", "lm_head": "lm_head"}
    values = {
        f"base_model.model.{names[leaf]}.token_adapter.trainable_tokens_delta": torch.randn(
            len(numbers), _width(base), generator=chance
        )
        for leaf, numbers in places.items()
    }
    save_file(load_file(path) | values, path, metadata={"format": "pt"})
    config.write_text(json.dumps(json.loads(config.read_text()) | {"trainable_token_indices": places}))
    tokenizer.save_pretrained(folder)
    return Pairing(base, folder)


def _width(base: Path) -> int:
    return int(json.loads((base / "config.json").read_text())["hidden_size"])


def test_exports_have_the_rows_of_new_tokens(tokens: Pairing, tmp_path: Path) -> None:
    """Guards: without `WithRows` the tables had the old rows; without its size in the config the model did not load."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokens.export(tmp_path / "merged", "merged", "bf16")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    base: Any = AutoModelForCausalLM.from_pretrained(tokens.base)
    base.resize_token_embeddings(max(len(tokenizer), base.get_input_embeddings().weight.shape[0]))
    expected = PeftModel.from_pretrained(base, tokens.adapter).merge_and_unload().state_dict()
    weights = tokens.sources().weights(with_adapter=True, onto="original")
    for name in weights.names():
        assert torch.equal(torch.cat(list(weights.blocks(name))), expected[name].float()), name
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.config.vocab_size == len(merged.get_input_embeddings().weight) >= len(tokenizer)
    for name, value in merged.state_dict().items():
        assert torch.equal(value.bfloat16(), expected[name].bfloat16()), name
    report = tokens.export(tmp_path / "gguf", "gguf", "fp16")
    assert report["check"]["same"] == 1.0


def test_a_gguf_adapter_has_no_place_for_tokens(tokens: Pairing, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no place for trained tokens; export it as merged or gguf"):
        tokens.export(tmp_path / "out", "gguf-adapter")
    config = json.loads((tokens.adapter / "adapter_config.json").read_text())
    broken = Pairing(tokens.base, shutil.copytree(tokens.adapter, tmp_path / "broken"))
    (broken.adapter / "adapter_config.json").write_text(json.dumps(config | {"trainable_token_indices": [1]}))
    with pytest.raises(ExportError, match="do not agree on the trained tokens of"):
        broken.export(tmp_path / "out", "merged")
