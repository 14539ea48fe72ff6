"""(c) A small real model cut once: our way, and the paper's way.

The paper's way keeps only the adapter, and optimiser, schedule and order start again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.models import Scale, small_job, small_model, write_prose
from benchmarks.gpu.sessions import Run, Watcher, resolved, run, session, tensors_sha256
from worker.agent.hardware import probe
from worker.shared import checkpoint_file

LOOK_EVERY = 10
TREND = 15
"""Steps of the moving average that is subtracted from a loss curve before two curves are correlated."""


def measure(folder: Path, scale: Scale, backend: str, gguf: Path | None) -> dict[str, Any]:
    """Two epochs, cut between them, where the paper's second session repeated the first one's order."""
    model = small_model(folder, gguf, scale)
    rows, characters = (352, 1200) if probe().device == "cuda" else (88, 240)
    if scale.tiny:
        rows, characters = 352, 120
    data = write_prose(folder / "prose.jsonl", characters, rows)
    file = small_job(model, scale, backend)
    spec = resolved(file, data)
    epoch = spec.train_rows // spec.global_batch_size
    spec = spec.model_copy(update={"max_steps": 2 * epoch, "eval_steps": LOOK_EVERY})
    whole = run(spec, data, folder / "seam-whole")
    ours = run(spec, data, folder / "seam-ours", [epoch])
    paper = _papers_way(spec.model_copy(update={"max_steps": epoch}), data, folder)
    return {
        "model": scale.small_name,
        "rows_sha256": checkpoint_file.sha256_file(data),
        "cut_after_step": epoch,
        "unbroken": _curves(whole),
        "ours": _curves(ours),
        "paper": paper,
        "ours_bytes_equal": all(
            tensors_sha256(whole.checkpoint, part) == tensors_sha256(ours.checkpoint, part)
            for part in ("adapter.", "optimizer.")
        ),
        "ours_largest_loss_difference": max(
            abs(a - b) for a, b in zip(whole.series("loss"), ours.series("loss"), strict=True)
        ),
        "replay_r": {"ours": replay(ours.series("loss"), epoch), "paper": replay(paper["loss"], epoch)},
        "bump": {"ours": _bump(_curves(ours), epoch), "paper": _bump(paper, epoch)},
    }


def _papers_way(spec: Any, data: Path, folder: Path) -> dict[str, Any]:
    """Two jobs of one epoch each. The second gets the first one's adapter and nothing else."""
    first = run(spec, data, folder / "seam-paper-1")
    with _starting_from(first.checkpoint):
        second = Watcher()
        session(spec, data, folder / "seam-paper-2", second)
    before, after = _curves(first), _curves(Run(steps=second.steps, checkpoint=first.checkpoint, sessions=[second]))
    at = len(before["loss"])
    return {
        "loss": before["loss"] + after["loss"],
        "eval_loss": before["eval_loss"] + [[at + step, value] for step, value in after["eval_loss"]],
    }


@contextlib.contextmanager
def _starting_from(path: Path) -> Iterator[None]:
    """Sessions inside the block start from this checkpoint's adapter instead of a new one."""
    import torch

    from worker.training.backends import base

    tensors, _ = checkpoint_file.load(path)

    def start(model: Any, seed: int) -> None:  # noqa: ARG001 - whatever the seed
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.from_numpy(tensors[f"adapter.{name}"].copy()))

    real, base.start_adapter = base.start_adapter, start
    try:
        yield
    finally:
        base.start_adapter = real


def _curves(job: Run) -> dict[str, Any]:
    looks = {step: values["eval_loss"] for watcher in job.sessions for step, values in watcher.measures.items()}
    return {"loss": job.series("loss"), "eval_loss": [[step, looks[step]] for step in sorted(looks)]}


def _bump(curves: dict[str, Any], seam: int) -> dict[str, Any]:
    """The increase of the validation loss after the seam, and the steps until it is below its old value."""
    looks = dict(map(tuple, curves["eval_loss"]))
    at = looks[max(step for step in looks if step <= seam)]
    later = {step: value - at for step, value in looks.items() if step > seam}
    below = [step for step in sorted(later) if later[step] <= 0]
    return {
        "eval_loss_at_seam": at,
        "largest_rise": max(0.0, *later.values()),
        "steps_to_recover": below[0] - seam if below else None,
    }


def replay(losses: Sequence[float], seam: int) -> float:
    """Correlation of the detrended losses before the seam with those after it at the same distance from their start.

    Near 1 if the second session saw the first one's samples in the first one's order.
    """
    steps = min(seam, len(losses) - seam)
    before, after = _detrended(losses[:steps]), _detrended(losses[seam : seam + steps])
    return float(np.corrcoef(before, after)[0, 1])


def _detrended(losses: Sequence[float]) -> np.ndarray:
    values = np.asarray(losses)
    window = np.ones(min(TREND, len(values)))
    mean = np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")
    return values - mean
