"""(d) One session on `hf`, the next on `unsloth`, against the run that stayed on `hf`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.gpu.models import Scale, paper_model, write_long_rows
from benchmarks.gpu.sessions import Watcher, largest_difference, resolved, run, session


def first_half(folder: Path, scale: Scale, cut: int) -> dict[str, Any]:
    """On `hf`: the unbroken run, and one session of it up to `cut`."""
    model, data = paper_model(folder, scale), write_long_rows(folder / "long.jsonl", scale)
    spec = resolved(scale.job(model, "", backend="hf"), data)
    session(spec, data, folder / "cross-first", Watcher(stop_at=cut))
    whole = run(spec, data, folder / "cross-whole")
    return {"losses": whole.series("loss"), "batch_crc32": whole.series("batch_crc32")}


def second_half(
    folder: Path, scale: Scale, cut: int, whole: dict[str, Any], backend: str = "unsloth"
) -> dict[str, Any]:
    """On `backend`: the rest of the run, compared with the unbroken one."""
    model, data = paper_model(folder, scale), write_long_rows(folder / "long.jsonl", scale)
    spec = resolved(scale.job(model, "", backend=backend), data)
    checkpoint = folder / "cross-first" / f"step-{cut}.safetensors"
    rest = run(spec, data, folder / "cross-second", resume=checkpoint)
    last = folder / "cross-whole" / "session-0" / f"step-{spec.total_steps}.safetensors"
    pairs = list(zip(whole["losses"][cut:], rest.series("loss"), strict=True))
    return {
        "cut_after_step": cut,
        "restores": rest.sessions[0].restores,
        "losses_hf": whole["losses"],
        "losses_after": rest.series("loss"),
        "largest_loss_difference": max(abs(a - b) for a, b in pairs),
        "sample_order_equal": whole["batch_crc32"][cut:] == rest.series("batch_crc32"),
        "largest_adapter_difference": largest_difference(last, rest.checkpoint, "adapter."),
    }
