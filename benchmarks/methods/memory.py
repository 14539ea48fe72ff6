"""Peak GPU memory of a step of direct preference optimisation with an 8B model on a card of 16 GB.

The model has the shape of Llama-3-8B and random weights in NF4. It is made on the spot. A pair has two rows of 1,024
tokens. The session may use 15.5 GiB, as on a T4.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.models import MISTRAL_7B, quantised_model
from benchmarks.gpu.sessions import Watcher, resolved, session
from benchmarks.report import Figure
from benchmarks.tiny_job import WORDS

CAP_GIB, BAR_GIB = 15.5, 12.0
TOKENS, PAIRS, STEPS = 1_024, 4, 3
LLAMA_8B = MISTRAL_7B | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128_256,
    "max_position_embeddings": 8_192,
    "rope_theta": 500_000.0,
}
LLAMA_8B_PARAMETERS = 8_030_261_248
NO_GPU = "not measured, because this computer has no GPU"


def figures(folder: Path) -> Iterator[Figure]:
    """The peak. Without a GPU, one sentence in its place, which does not meet the bar."""
    import torch

    name, bar = f"dpo: peak of a step with an 8B model and pairs of 2 x {TOKENS:,} tokens, GiB", f"<= {BAR_GIB:g}"
    if not torch.cuda.is_available():
        yield Figure(name=name, value=NO_GPU, bar=bar, ok=False)
        return
    peak = measured(folder)
    yield Figure(name=name, value=round(peak, 2), bar=bar, ok=peak <= BAR_GIB)


def measured(folder: Path) -> float:
    """GiB that the allocator has reserved at most."""
    os.environ["WORKER_GPU_MEMORY_BYTES"] = str(int(CAP_GIB * 2**30))
    model = folder / "model"
    quantised_model(model, LLAMA_8B, LLAMA_8B_PARAMETERS)
    file: dict[str, Any] = {
        "base_model": str(model),
        "rl": "dpo",
        "backend": "hf",
        "adapter": "qlora",
        "lora_r": 16,
        "sequence_len": TOKENS,
        "global_batch_size": PAIRS,
        "micro_batch_size": 1,
        "max_steps": STEPS,
        "optimizer": "adamw_8bit",
        "encoding": 3,
        "numerics": 2,
    }
    data = write_pairs(folder / "pairs.jsonl")
    watcher = Watcher()
    session(resolved(file, data), data, folder / "work", watcher)
    return max(values["gpu_peak_bytes"] for values in watcher.steps.values()) / 2**30


def write_pairs(path: Path, rows: int = 12) -> Path:
    """Pairs of texts that both fill the whole sequence."""
    chance = random.Random(7)

    def text(size: int) -> str:
        found = ""
        while len(found) < size:
            found += chance.choice(WORDS) + " "
        return found

    pairs = [{"prompt": text(200), "chosen": text(TOKENS), "rejected": text(TOKENS)} for _ in range(rows)]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return path
