"""(a) Peak GPU memory at several micro-batches, compared with the estimate before launch."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.gpu.models import Scale, paper_model, write_long_rows
from benchmarks.gpu.sessions import Watcher, resolved, session
from worker.shared import memory_estimate
from worker.shared.memory_estimate import Shape

SIZES = (1, 2, 4)


def measure(folder: Path, scale: Scale, backend: str) -> dict[str, Any]:
    """Each size in its own process, so that memory of an earlier session is not counted."""
    paper_model(folder, scale)
    write_long_rows(folder / "long.jsonl", scale)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as aside:
        return {"backend": backend, "peaks": [aside.submit(_peak, folder, scale, backend, n).result() for n in SIZES]}


def _peak(folder: Path, scale: Scale, backend: str, size: int) -> dict[str, Any]:
    model, data = paper_model(folder, scale), folder / "long.jsonl"
    shape = Shape.read(model / "config.json")
    assert shape is not None
    spec = resolved(scale.job(model, "", backend=backend, micro_batch_size=size), data)
    watcher = Watcher(stop_at=2)
    session(spec, data, folder / f"peak-{backend}-{size}", watcher)
    measured = max((values.get("gpu_peak_bytes", 0.0) for values in watcher.steps.values()), default=0.0)
    predicted = memory_estimate.gpu_bytes(spec, shape, backend=backend, micro_batch=size)
    gib = {"predicted_gib": round(predicted / 2**30, 3), "measured_gib": round(measured / 2**30, 3)}
    return {"micro_batch": size, "step_seconds": round(watcher.step_seconds[-1], 3)} | gib
