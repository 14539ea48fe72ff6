"""(d) One session on `hf`, the next on `unsloth`, against the run that stayed on `hf`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.models import Scale, paper_model, small_job, small_model, write_long_rows, write_prose
from benchmarks.gpu.sessions import Run, largest_difference, resolved, run

SMALL_STEPS = 60


def measure(folder: Path, scale: Scale, whole: dict[str, Any], backend: str) -> dict[str, Any]:
    """The paper's job: go on from the one cut of item `exact-hf` on `backend` and compare with its unbroken run."""
    model, data = paper_model(folder, scale), write_long_rows(folder / "long.jsonl", scale)
    spec = resolved(scale.job(model, "", backend=backend), data)
    (cut,) = next(c["cut_after_steps"] for c in whole["cuts"] if len(c["cut_after_steps"]) == 1)
    rest = run(spec, data, folder / "cross", resume=folder / "exact-hf-1" / "session-0" / f"step-{cut}.safetensors")
    last = folder / "exact-hf-0" / "session-0" / f"step-{spec.total_steps}.safetensors"
    return _compare(whole["losses"], whole["batch_crc32"], last, cut, rest)


def measure_small(folder: Path, scale: Scale, gguf: Path | None, backend: str) -> dict[str, Any]:
    """A real model on real text, whose loss does not plunge as that of random weights does."""
    home = folder / "cross-small"
    model, cut = small_model(home, gguf, scale), SMALL_STEPS // 2
    data = write_prose(home / "prose.jsonl", 120 if scale.tiny else 1200)
    stays, leaves = (
        resolved(small_job(model, scale, name) | {"max_steps": SMALL_STEPS}, data) for name in ("hf", backend)
    )
    whole = run(stays, data, home / "stays", [cut])
    rest = run(leaves, data, home / "leaves", resume=home / "stays" / "session-0" / f"step-{cut}.safetensors")
    told = _compare(whole.series("loss"), whole.series("batch_crc32"), whole.checkpoint, cut, rest)
    return {"model": scale.small_name} | told


def _compare(losses: Sequence[float], batches: Sequence[float], last: Path, cut: int, rest: Run) -> dict[str, Any]:
    pairs = zip(losses[cut:], rest.series("loss"), strict=True)
    return {
        "cut_after_step": cut,
        "restores": rest.sessions[0].restores,
        "losses_hf": losses,
        "losses_after": rest.series("loss"),
        "largest_loss_difference": max(abs(a - b) for a, b in pairs),
        "sample_order_equal": batches[cut:] == rest.series("batch_crc32"),
        "largest_adapter_difference": largest_difference(last, rest.checkpoint, "adapter."),
    }
