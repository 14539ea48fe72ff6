"""Tiny judge models: one that writes the same word after any request, and one that writes nonsense."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.tiny_model import SPECIAL, byte_tokenizer


def make_judge(directory: Path, word: str, positions: int = 4096) -> Path:
    """A Llama whose layers add nothing, so that each token alone chooses the next one: those of the word.

    The last character of a request begins the word. One that has a letter twice cannot be written like this.
    """
    import torch

    def teach(model: Any, tokenizer: Any) -> None:
        path = tokenizer("\n" + word, add_special_tokens=False)["input_ids"] + [SPECIAL.index("<|im_end|>")]
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
        for place, (token, following) in enumerate(pairwise(path)):
            model.model.embed_tokens.weight[token, place] = 1.0
            model.lm_head.weight[following, place] = 1.0

    with torch.no_grad():
        return _written(directory, teach, positions=positions)


def make_nonsense(directory: Path, template: str | None = None, positions: int = 4096) -> Path:
    """A Llama with large random weights, whose texts depend on all of a request.

    `template` replaces its chat template. An empty one leaves none.
    """
    _written(directory, lambda model, tokenizer: None, positions=positions)
    if template is not None:
        (directory / "chat_template.jinja").unlink(missing_ok=True)
        file = directory / "tokenizer_config.json"
        config = {key: value for key, value in json.loads(file.read_text()).items() if key != "chat_template"}
        file.write_text(json.dumps(config | ({"chat_template": template} if template else {})))
    return directory


def _written(directory: Path, teach: Any, positions: int) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=SPECIAL.index("<|im_end|>"),
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = LlamaForCausalLM(config)
    teach(model, tokenizer)
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
