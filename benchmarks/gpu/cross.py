"""(d) One session on `hf`, the next on `unsloth`, compared with a run only on `hf`, in 16 bits and in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.models import Scale, paper_model, small_job, small_model, write_long_rows, write_prose
from benchmarks.gpu.sessions import Run, computing_in, largest_difference, resolved, run
from worker.shared import checkpoint_file

FP32_STEPS = 6
SMALL_STEPS = 60


def measure(folder: Path, scale: Scale, whole: dict[str, Any], backend: str) -> dict[str, Any]:
    """The paper's job: resume the cut of item `exact-hf` on `backend` and compare with its uninterrupted run."""
    model, data = paper_model(folder, scale), write_long_rows(folder / "long.jsonl", scale)
    spec = resolved(scale.job(model, "", backend=backend), data)
    (cut,) = next(c["cut_after_steps"] for c in whole["cuts"] if len(c["cut_after_steps"]) == 1)
    rest = run(spec, data, folder / "cross", resume=folder / "exact-hf-1" / "session-0" / f"step-{cut}.safetensors")
    last = folder / "exact-hf-0" / "session-0" / f"step-{spec.total_steps}.safetensors"
    return _compare(whole["losses"], whole["batch_crc32"], last, cut, rest)


def measure_fp32(folder: Path, scale: Scale, backend: str) -> dict[str, Any]:
    """The paper's job without rounding to 16 bits, which shows the other differences between the two backends."""
    model, data = paper_model(folder, scale), write_long_rows(folder / "long.jsonl", scale)
    with computing_in("fp32"):
        return _changed(scale.job(model, "", max_steps=FP32_STEPS), data, folder / "cross-fp32", backend)


def measure_small(folder: Path, scale: Scale, gguf: Path | None, backend: str, precision: str | None) -> dict[str, Any]:
    """A real model on real text, whose loss does not drop as steeply as with random weights."""
    home = folder / (f"cross-small-{precision}" if precision else "cross-small")
    job = small_job(small_model(home, gguf, scale), scale, "hf") | {"max_steps": SMALL_STEPS}
    data = write_prose(home / "prose.jsonl", 120 if scale.tiny else 1200)
    with computing_in(precision):
        return {"model": scale.small_name} | _changed(job, data, home, backend)


def _changed(job: dict[str, Any], data: Path, home: Path, backend: str) -> dict[str, Any]:
    """The job on `hf`, cut in the middle (which has no effect, item `exact-hf`), with its second half on `backend`."""
    stays, leaves = (resolved(job | {"backend": name}, data) for name in ("hf", backend))
    cut = stays.total_steps // 2
    whole = run(stays, data, home / "stays", [cut])
    rest = run(leaves, data, home / "leaves", resume=home / "stays" / "session-0" / f"step-{cut}.safetensors")
    return _compare(whole.series("loss"), whole.series("batch_crc32"), whole.checkpoint, cut, rest)


def _compare(losses: Sequence[float], batches: Sequence[float], last: Path, cut: int, rest: Run) -> dict[str, Any]:
    apart = [abs(a - b) for a, b in zip(losses[cut:], rest.series("loss"), strict=True)]
    return {
        "precision": checkpoint_file.read_manifest(last).precision,
        "cut_after_step": cut,
        "restores": rest.sessions[0].restores,
        "losses_hf": losses,
        "losses_after": rest.series("loss"),
        "largest_loss_difference": max(apart),
        "mean_loss_difference": sum(apart) / len(apart),
        "sample_order_equal": batches[cut:] == rest.series("batch_crc32"),
        "largest_adapter_difference": largest_difference(last, rest.checkpoint, "adapter."),
    }
