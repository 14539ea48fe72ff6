"""Whether the planner's estimate of GPU memory is right: measured peaks of a few steps at several micro-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.gpu.models import Scale, paper_model, write_long_rows
from benchmarks.gpu.sessions import Watcher, resolved, session


def measure(folder: Path, scale: Scale, backend: str, micro_batches: tuple[int, ...] = (1, 2, 4)) -> dict[str, Any]:
    """Predicted and measured bytes, side by side."""
    from worker import fit
    from worker.training import base_model

    model, data = paper_model(folder, scale), write_long_rows(folder / "long.jsonl", scale)
    shape = fit.Shape.read(model / "config.json")
    found = []
    for micro in micro_batches:
        spec = resolved(scale.job(model, "", backend=backend, micro_batch_size=micro), data)
        watcher = Watcher(stop_at=2)
        session(spec, data, folder / f"fit-{backend}-{micro}", watcher)
        measured = max((values.get("gpu_peak_bytes", 0.0) for values in watcher.steps.values()), default=0.0)
        assert shape is not None
        predicted = fit.gpu_bytes(spec, shape, backend=backend, micro_batch=micro)
        found.append(
            {
                "micro_batch": micro,
                "predicted_gib": round(predicted / 2**30, 3),
                "measured_gib": round(measured / 2**30, 3),
                "error": round(predicted / measured - 1, 4) if measured else None,
                "step_seconds": watcher.step_seconds,
            }
        )
    return {"backend": backend, "stored_bytes": base_model.load_bytes("", model, True, "bf16"), "sizes": found}
