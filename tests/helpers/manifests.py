"""Manifests of checkpoints that tests and benchmarks write by hand."""

from __future__ import annotations

from typing import Any

from worker.shared.manifest import Hardware, Manifest, Recipe


def manifest(job: str, step: int, recipe: Recipe, **changes: Any) -> Manifest:
    """That of one step of the job's first session, as `changes` say otherwise."""
    usual: dict[str, Any] = {
        "job": job,
        "fence": 1,
        "step": step,
        "recipe": recipe,
        "epoch": 0,
        "index": step,
        "samples_seen": step,
        "wall_seconds": 1.0,
        "backend": "hf",
        "precision": "fp32",
        "micro_batch_size": 1,
        "hardware": Hardware(),
        "versions": {},
        "state": {},
    }
    return Manifest(**usual | changes)
