"""Tiny models of many families for the exactness hunt, with random weights and a byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.tiny_model import byte_tokenizer

POSITIONS = 32
"""Positions that a scaled rotary embedding was made for. The rows of the hunt are longer and shorter."""

ROPES: dict[str, dict[str, Any]] = {
    "plain": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": POSITIONS},
    "longrope": {
        "rope_type": "longrope",
        "factor": 2.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "original_max_position_embeddings": POSITIONS,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 2.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": POSITIONS,
    },
}
ROTARY = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma": "Gemma",
    "gemma2": "Gemma2",
    "phi3": "Phi3",
    "olmo2": "Olmo2",
    "granite": "Granite",
    "mixtral": "Mixtral",
}
OTHERS = {"gpt2": "GPT2", "opt": "OPT", "bloom": "Bloom"}
ONLY = {"phi3": ("plain", "longrope")}
"""Kinds of rope of the families that do not know them all."""
_MORE: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 16},
    "gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 8},
    "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 1},
    "gpt2": {"resid_pdrop": 0.1, "attn_pdrop": 0.1, "embd_pdrop": 0.1},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "layerdrop": 0.3, "dropout": 0.1},
    "bloom": {"hidden_dropout": 0.1},
}


def make(folder: Path, family: str, rope: str) -> Path:
    """Write a model of about 20,000 parameters. Returns `folder`."""
    import torch
    import transformers

    tokenizer = byte_tokenizer()
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS if family in ROTARY else 256,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if family in ROTARY:
        sizes |= {"num_key_value_heads": 2, "head_dim": 8, "rope_parameters": {"rope_theta": 1e4} | ROPES[rope]}
    stem = (ROTARY | OTHERS)[family]
    config = getattr(transformers, f"{stem}Config")(**sizes | _MORE.get(family, {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, "GPT2LMHeadModel" if family == "gpt2" else f"{stem}ForCausalLM")(config)
    model.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
