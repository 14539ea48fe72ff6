"""(d) One session on `hf`, the next on `unsloth`, against the run that stayed on `hf` (item `exact-hf`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.gpu.models import Scale, paper_model, write_long_rows
from benchmarks.gpu.sessions import largest_difference, resolved, run


def measure(folder: Path, scale: Scale, whole: dict[str, Any], backend: str) -> dict[str, Any]:
    """Go on from the one cut of `exact-hf` on `backend` and compare with its unbroken run."""
    model, data = paper_model(folder, scale), write_long_rows(folder / "long.jsonl", scale)
    spec = resolved(scale.job(model, "", backend=backend), data)
    (cut,) = next(c["cut_after_steps"] for c in whole["cuts"] if len(c["cut_after_steps"]) == 1)
    rest = run(spec, data, folder / "cross", resume=folder / "exact-hf-1" / "session-0" / f"step-{cut}.safetensors")
    last = folder / "exact-hf-0" / "session-0" / f"step-{spec.total_steps}.safetensors"
    pairs = zip(whole["losses"][cut:], rest.series("loss"), strict=True)
    return {
        "cut_after_step": cut,
        "restores": rest.sessions[0].restores,
        "losses_hf": whole["losses"],
        "losses_after": rest.series("loss"),
        "largest_loss_difference": max(abs(a - b) for a, b in pairs),
        "sample_order_equal": whole["batch_crc32"][cut:] == rest.series("batch_crc32"),
        "largest_adapter_difference": largest_difference(last, rest.checkpoint, "adapter."),
    }
