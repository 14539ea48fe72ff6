"""The same job as a plain script: TRL's trainer as in its and unsloth's documentation, without our code."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.models import LORA_PARAMETERS, Scale, paper_model, write_long_rows
from benchmarks.gpu.orchestrated import WARM_UP
from worker.training.determinism import require_deterministic_kernels


def measure(folder: Path, scale: Scale, backend: str, *, deterministic: bool) -> dict[str, Any]:
    """Step times and peak memory. With `deterministic`, only deterministic kernels are used, as in our trainer."""
    folder_of_model = paper_model(folder, scale)
    data = write_long_rows(folder / "long.jsonl", scale)
    if backend == "unsloth":
        import unsloth  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    on_gpu = torch.cuda.is_available()
    if backend == "unsloth":
        model, peft_config = _unsloth(folder_of_model, scale), None
    else:
        model, peft_config = _hf(folder_of_model, scale, on_gpu)
    seconds: list[float] = []

    class Clock(TrainerCallback):
        began = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.monotonic()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append(time.monotonic() - self.began)

    rows = [json.loads(line) for line in data.read_text().splitlines()]
    trainer = SFTTrainer(
        model=model,
        peft_config=peft_config,
        processing_class=AutoTokenizer.from_pretrained(folder_of_model),
        train_dataset=Dataset.from_list(rows),
        args=SFTConfig(
            output_dir=str(folder / f"by-hand-{backend}-{deterministic}"),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            max_steps=scale.timed_steps,
            max_length=scale.sequence_len,
            packing=False,
            learning_rate=2e-4,
            warmup_steps=0.03,
            lr_scheduler_type="linear",
            optim="adamw_8bit",
            max_grad_norm=0.3,
            bf16=on_gpu,
            use_cpu=not on_gpu,
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        callbacks=[Clock()],
    )
    assert trainer.model is not None
    count = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    if not scale.tiny and count != LORA_PARAMETERS:
        raise RuntimeError(f"{count} trainable parameters, not {LORA_PARAMETERS}")
    if deterministic:
        require_deterministic_kernels()
    trainer.train()
    return {
        "backend": backend,
        "deterministic": deterministic,
        "step_seconds": [round(value, 4) for value in seconds],
        "step_seconds_median": round(statistics.median(seconds[WARM_UP:]), 4),
        "peak_reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 3) if on_gpu else None,
    }


def _unsloth(folder: Path, scale: Scale) -> Any:
    from unsloth import FastLanguageModel  # pyright: ignore[reportMissingImports]

    model, _ = FastLanguageModel.from_pretrained(str(folder), max_seq_length=scale.sequence_len, load_in_4bit=True)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return FastLanguageModel.get_peft_model(
        model, r=16, lora_alpha=32, lora_dropout=0, target_modules=targets, use_gradient_checkpointing="unsloth"
    )


def _hf(folder: Path, scale: Scale, on_gpu: bool) -> tuple[Any, Any]:
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options: dict[str, Any] = {}
    if scale.tiny:
        options["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16 if on_gpu else torch.float32, device_map={"": 0 if on_gpu else "cpu"}, **options
    )
    return model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
