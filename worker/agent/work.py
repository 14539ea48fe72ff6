"""The work of a session, training or an evaluation, and the file that it ends with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from worker.shared.checkpoint_file import sha256_file
from worker.shared.messages import ExportedAdapter, GrantKind, StoredAnswers
from worker.training.interface import Hooks, Trained, TrainingJob


def do(job: TrainingJob, hooks: Hooks) -> Trained:
    """Train or evaluate, as the job asks. The imports take seconds."""
    if job.spec.evaluation is not None:
        from worker.training import evaluate

        return evaluate.evaluate(job, hooks)
    from worker.training import train

    return train.train(job, hooks)


def stored(trained: Trained, store: Callable[[Path, GrantKind], str]) -> dict[str, Any]:
    """Store the adapter or the answers of a complete job. Returns that field of `Finish`.

    `store` returns the key of a file.
    """
    path = trained.answers or trained.adapter_zip
    assert path is not None
    file = {"sha256": sha256_file(path), "size": path.stat().st_size}
    if trained.answers is not None:
        return {"answers": StoredAnswers(key=store(path, GrantKind.ANSWERS), **file)}
    key = store(path, GrantKind.ADAPTER)
    return {"adapter": ExportedAdapter(key=key, adapter_sha256=trained.adapter_sha256 or "", **file)}
