"""Trains a few real steps of a model made on the spot.

`python -m worker.doctor.tiny ADAPTER FOLDER` prints a line of JSON. The trainer, the adapter, the precision and the
number of processes are those of a session. Only the sizes differ.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Idle OpenMP threads spin and would slow down other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

STEPS, ROWS = 4, 16
_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}<|end|>\n{% endfor %}"
_SPECIAL = ("<|pad|>", "<|end|>")


class Listener:
    """Implements the trainer's hooks: records every step and never stops the run."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.backend = ""

    def phase(self, phase: Any) -> None:
        """Does nothing. No server waits for it."""

    def begins(self, part: Any) -> None:
        """Does nothing, because the check itself has a limit."""

    def lost(self, words: str) -> None:
        """Does nothing, because one process trains alone."""

    def restored(self, step: int, fidelity: Any, backend: str) -> None:
        """Record the backend."""
        self.backend = backend

    def lowered(self, fidelity: Any, why: str) -> None:
        """Does nothing. Nothing is compared with this run."""

    def step_done(self, step: int, values: Mapping[str, float], seconds: float) -> Any:
        """Record one more step."""
        from worker.training.interface import Decision

        self.losses.append(values["loss"])
        return Decision.CONTINUE

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """Does nothing. There is no evaluation."""

    def sampled(self, samples: Any) -> None:
        """Does nothing. There are no samples."""

    def save(self, snapshot: Any) -> None:
        """Wait for the copy. It is not stored, because the adapter contains the last step's state."""
        snapshot.ready()


def make_model(folder: Path) -> Path:
    """Write a random Llama with about 40,000 parameters and a byte-level tokenizer. Returns `folder`."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={text: number for number, text in enumerate(words)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in _SPECIAL])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>")  # noqa: S106
    tokenizer.chat_template = _TEMPLATE
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train(adapter: str, folder: Path) -> dict[str, Any]:
    """Train `STEPS` steps in `folder`, after the smoke step of a LoRA.

    Returns the adapter's sha256, the losses and the device.
    """
    from worker.agent.hardware import probe
    from worker.shared.job_spec import JobSpec
    from worker.training import smoke, unusable
    from worker.training import train as sft
    from worker.training.interface import TrainingJob
    from worker.training.precision import precision_of
    from worker.training.ranks import world_size

    model, rows = folder / "model", folder / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"{n} and {n}", "completion": f"{2 * n}"}) + "\n" for n in range(ROWS))
    )
    spec = JobSpec.model_validate(
        {
            "base_model": str(model),
            "datasets": [{"path": "rows.jsonl", "type": "prompt_completion", "file_format": "jsonl", "rows": ROWS}],
            "adapter": adapter,
            "max_steps": STEPS,
            "global_batch_size": 2,
            "sequence_len": 64,
        }
    )
    if adapter == "lora":  # one process of a check is enough
        hardware = probe()
        smoke.try_all(hardware, spec.backend, world_size(spec, hardware))
    unusable.hide()
    make_model(model)
    work = folder / "work"
    work.mkdir()
    heard = Listener()
    done = sft.train(TrainingJob(job="check", fence=1, spec=spec, datasets=(rows,), resume=None, work_dir=work), heard)
    hardware = probe()
    return {
        "complete": done.complete and len(heard.losses) == STEPS and all(map(math.isfinite, heard.losses)),
        "adapter_sha256": done.adapter_sha256,
        "losses": [round(loss, 4) for loss in heard.losses],
        "backend": heard.backend,
        "device": hardware.device,
        "gpus": hardware.count if hardware.device == "cuda" else 0,
        "gpu": hardware.name if hardware.device == "cuda" else "",
        "gpu_bytes": hardware.memory_bytes,
        "precision": precision_of(hardware),
    }


if __name__ == "__main__":
    print(json.dumps(train(sys.argv[1], Path(sys.argv[2]))), flush=True)
    from worker.shared.process import leave

    leave()
