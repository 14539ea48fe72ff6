"""(b) The run cut 0, 1 and 5 times at random steps, compared with the uninterrupted run.

Compares losses, sample order, adapter and optimiser.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from benchmarks.gpu.models import Scale, paper_model, write_long_rows
from benchmarks.gpu.sessions import Run, computing_in, largest_difference, resolved, run, tensors_sha256
from worker.shared import checkpoint_file


def measure(folder: Path, scale: Scale, backend: str, *, fp16: bool = False) -> dict[str, Any]:
    """Compare runs of the paper's job. The checkpoint at the single cut stays in `folder` for other items.

    With `fp16` the card computes like one without bf16, for example a T4, with a loss scaler, and the run is cut once.
    """
    model, data = paper_model(folder, scale), write_long_rows(folder / "long.jsonl", scale)
    spec = resolved(scale.job(model, "", backend=backend), data)
    chance = random.Random(3)
    runs: dict[int, Run] = {}
    steps: dict[int, list[int]] = {}
    name = f"exact-fp16-{backend}" if fp16 else f"exact-{backend}"
    with computing_in("fp16" if fp16 else None):
        for count in (0, 1) if fp16 else (0, 1, 5):
            steps[count] = sorted(chance.sample(range(1, spec.total_steps), count))
            runs[count] = run(spec, data, folder / f"{name}-{count}", steps[count])
    whole = runs[0]
    manifest = checkpoint_file.read_manifest(whole.checkpoint)
    return {
        "backend": backend,
        "precision": manifest.precision,
        "scaler": manifest.state.get("scaler"),
        "deterministic": manifest.state["deterministic"],
        "steps": spec.total_steps,
        "losses": whole.series("loss"),
        "batch_crc32": whole.series("batch_crc32"),
        "cuts": [_against(whole, cut, steps[count]) for count, cut in runs.items() if count],
    }


def _against(whole: Run, cut: Run, at: list[int]) -> dict[str, Any]:
    losses = zip(whole.series("loss"), cut.series("loss"), strict=True)
    return {
        "cut_after_steps": at,
        "fidelity": [fidelity for watcher in cut.sessions for _, fidelity, _ in watcher.restores],
        "largest_loss_difference": max(abs(a - b) for a, b in losses),
        "sample_order_equal": whole.series("batch_crc32") == cut.series("batch_crc32"),
        "adapter_bytes_equal": _same(whole, cut, "adapter."),
        "optimizer_bytes_equal": _same(whole, cut, "optimizer."),
        "largest_adapter_difference": largest_difference(whole.checkpoint, cut.checkpoint, "adapter."),
    }


def _same(whole: Run, cut: Run, prefix: str) -> bool:
    return tensors_sha256(whole.checkpoint, prefix) == tensors_sha256(cut.checkpoint, prefix)
