"""(b) The run cut 0, 1 and 5 times at random steps: losses, sample order, adapter and optimiser against the unbroken run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from benchmarks.gpu.models import Scale, paper_model, write_long_rows
from benchmarks.gpu.sessions import Run, Watcher, largest_difference, resolved, run, session, tensors_sha256
from worker import fit
from worker.fit import Shape


def measure(folder: Path, scale: Scale, backend: str, cuts: tuple[int, ...] = (0, 1, 5)) -> dict[str, Any]:
    """Compare, on the paper's job; the checkpoint at the one cut stays in `folder` for whoever goes on from it."""
    model, data = paper_model(folder, scale), write_long_rows(folder / "long.jsonl", scale)
    spec = resolved(scale.job(model, "", backend=backend), data)
    chance = random.Random(3)
    runs: dict[int, Run] = {}
    steps: dict[int, list[int]] = {}
    for count in cuts:
        steps[count] = sorted(chance.sample(range(1, spec.total_steps), count))
        runs[count] = run(spec, data, folder / f"exact-{backend}-{count}", steps[count])
    whole = runs[0]
    return {
        "backend": backend,
        "steps": spec.total_steps,
        "losses": whole.series("loss"),
        "batch_crc32": whole.series("batch_crc32"),
        "cuts": [_against(whole, runs[count], steps[count]) for count in cuts if count],
        "peaks": peaks(folder, scale, backend),
    }


def peaks(folder: Path, scale: Scale, backend: str, sizes: tuple[int, ...] = (1, 2, 4)) -> list[dict[str, Any]]:
    """Peak GPU memory at several micro-batches, beside what the planner says before launch."""
    model, data = paper_model(folder, scale), folder / "long.jsonl"
    shape = Shape.read(model / "config.json")
    assert shape is not None
    found = []
    for size in sizes:
        spec = resolved(scale.job(model, "", backend=backend, micro_batch_size=size), data)
        watcher = Watcher(stop_at=2)
        session(spec, data, folder / f"peak-{backend}-{size}", watcher)
        measured = max((values.get("gpu_peak_bytes", 0.0) for values in watcher.steps.values()), default=0.0)
        predicted = fit.gpu_bytes(spec, shape, backend=backend, micro_batch=size)
        gib = {"predicted_gib": round(predicted / 2**30, 3), "measured_gib": round(measured / 2**30, 3)}
        found.append({"micro_batch": size, "step_seconds": round(watcher.step_seconds[-1], 3)} | gib)
    return found


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
