"""Tiny models of every architecture that can be exported, with tokenizers that llama.cpp has, and adapters for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.tiny_model import CHAT_TEMPLATE
from worker.shared.passages import passages

FAMILIES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3Text",
    "phi3": "Phi3",
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_GEMMA = {"query_pre_attn_scalar": 16, "tie_word_embeddings": True}
_MORE: Mapping[str, Mapping[str, Any]] = {
    "llama": {"tie_word_embeddings": True, "rope_parameters": _LLAMA3},
    "mistral": {"sliding_window": None},
    "qwen2": {"tie_word_embeddings": True},
    "gemma2": _GEMMA,
    "gemma3_text": {"num_hidden_layers": 6, **_GEMMA},
    "phi3": {"tie_word_embeddings": False},
}
LIKE_SENTENCEPIECE = ("mistral", "gemma2", "gemma3_text", "phi3")
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ("<unk>", "<s>", "<|im_end|>", "<|im_start|>")


def make_model(folder: Path, family: str, seed: int = 0, **more: Any) -> Path:
    """Write a model of about 200,000 parameters in fp32 with its tokenizer. Returns `folder`."""
    import torch
    import transformers

    tokenizer = sentencepiece_like() if family in LIKE_SENTENCEPIECE else byte_level()
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer) + 8,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    config = getattr(transformers, f"{FAMILIES[family]}Config")(**sizes | dict(_MORE.get(family, {})) | more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stem = "Gemma3" if family == "gemma3_text" else FAMILIES[family]
        model = getattr(transformers, f"{stem}ForCausalLM")(config).float()
        _liven(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_adapter(folder: Path, base: Path, seed: int = 1, std: float = 0.1, **options: Any) -> Path:
    """Write a PEFT folder with random updates of all linear layers. `options` are those of `LoraConfig`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(
            **{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | options
        )
        model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=std)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def _liven(model: Any) -> None:
    """Give a fresh model weights with which attention looks somewhere and norms differ from one."""
    import torch

    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
        else:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)


def byte_level() -> Any:
    """Byte-level BPE with the split of Llama 3."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE(ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(SPECIAL), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    core.train_from_iterator([passage.text for passage in passages()], trainer)
    return _dressed(core)


def sentencepiece_like() -> Any:
    """BPE on characters with a fallback to bytes and a space before each text, as Llama 2 and Mistral have it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=list(SPECIAL))
    learned = Tokenizer(models.BPE())
    space = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    learned.normalizer = space
    words = [word for passage in passages() for word in passage.text.split()]
    learned.train_from_iterator(words, trainer)
    import json

    model = json.loads(learned.to_str())["model"]
    plain = sorted((text for text in model["vocab"] if text not in SPECIAL), key=model["vocab"].__getitem__)
    order = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *plain]
    vocabulary = {text: number for number, text in enumerate(order)}
    merges = [tuple(pair) for pair in model["merges"]]
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = space
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _dressed(core)


def _dressed(core: Any) -> Any:
    """With special tokens, a bos before each text, and a chat template."""
    from tokenizers import AddedToken
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    core.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="<|im_end|>", unk_token="<unk>", pad_token="<unk>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
