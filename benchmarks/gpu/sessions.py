"""Runs a job in one or several sessions in this process, with new objects and only a checkpoint file between them."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker.agent.limits import Part
from worker.shared import checkpoint_file
from worker.shared.dataset_files import inspect
from worker.shared.dataset_spec import DatasetSpec
from worker.shared.job_spec import JobSpec
from worker.shared.manifest import Fidelity
from worker.shared.messages import Phase, Sample
from worker.training.interface import Decision, Snapshot, Trained, TrainingJob


@dataclass
class Watcher:
    """Hooks that stop after one step and record their arguments. Times are seconds since the session began."""

    stop_at: int | None = None
    save_at: frozenset[int] = frozenset()
    began: float = field(default_factory=time.monotonic)
    steps: dict[int, dict[str, float]] = field(default_factory=dict)
    step_seconds: list[float] = field(default_factory=list)
    phases: list[tuple[str, float]] = field(default_factory=list)
    restores: list[tuple[int, str, str]] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    measures: dict[int, dict[str, float]] = field(default_factory=dict)

    def phase(self, phase: Phase) -> None:
        self.phases.append((str(phase), time.monotonic() - self.began))

    def begins(self, part: Part) -> None:
        pass

    def lost(self, words: str) -> None:
        pass

    def restored(self, step: int, fidelity: Fidelity, backend: str) -> None:
        self.restores.append((step, str(fidelity), backend))

    def lowered(self, fidelity: Fidelity, why: str) -> None:
        step, _, backend = self.restores[-1]
        self.restores[-1] = (step, str(fidelity), backend)

    def step_done(self, step: int, values: Mapping[str, float], seconds: float) -> Decision:
        self.steps[step] = dict(values)
        self.step_seconds.append(seconds)
        if step == self.stop_at:
            return Decision.SAVE_AND_STOP
        return Decision.SAVE if step in self.save_at else Decision.CONTINUE

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        self.measures[step] = dict(values)

    def sampled(self, samples: tuple[Sample, ...]) -> None:
        pass

    def save(self, snapshot: Snapshot) -> None:
        snapshot.ready()
        self.snapshots = [snapshot]

    def seconds_of(self, phase: Phase) -> float:
        """Total time in a phase."""
        ends = [at for _, at in self.phases[1:]] + [time.monotonic() - self.began]
        return sum(end - at for (name, at), end in zip(self.phases, ends, strict=True) if name == phase)


@dataclass(frozen=True, kw_only=True)
class Run:
    """The result of a whole job: values of each step, the last checkpoint, and each session's hooks."""

    steps: dict[int, dict[str, float]]
    checkpoint: Path
    sessions: list[Watcher]

    def series(self, name: str) -> list[float]:
        """One value over all steps in order."""
        return [self.steps[step][name] for step in sorted(self.steps)]


def resolved(file: dict[str, Any], data: Path) -> JobSpec:
    """A job file as the server resolves it: rows counted, data hashed."""
    info = inspect(data)
    dataset = DatasetSpec(
        path=str(data),
        type=info.type,
        file_format=info.file_format,
        rows=info.rows,
        sha256=checkpoint_file.sha256_file(data),
    )
    return JobSpec.model_validate(file | {"datasets": [dataset.model_dump()]})


def session(
    spec: JobSpec, data: Path, folder: Path, watcher: Watcher, resume: Path | None = None, job: str = "bench"
) -> tuple[Trained, Path]:
    """Run one session. Its last checkpoint is in `folder` afterwards."""
    from worker.training.train import train

    folder.mkdir(parents=True, exist_ok=True)
    trained = train(TrainingJob(job=job, fence=1, spec=spec, datasets=(data,), resume=resume, work_dir=folder), watcher)
    path = folder / f"step-{trained.step}.safetensors"
    checkpoint_file.write(path, watcher.snapshots[-1].tensors, watcher.snapshots[-1].manifest)
    watcher.snapshots.clear()
    free_memory()
    return trained, path


def free_memory() -> None:
    """Free what the last session left on the card."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def run(spec: JobSpec, data: Path, folder: Path, cuts: Sequence[int] = (), resume: Path | None = None) -> Run:
    """Run the whole job, or the rest after `resume`, cut after each step in `cuts`."""
    sessions: list[Watcher] = []
    for number, cut in enumerate([*cuts, None]):
        watcher = Watcher(stop_at=cut)
        _, resume = session(spec, data, folder / f"session-{number}", watcher, resume)
        sessions.append(watcher)
    assert resume is not None
    return Run(
        steps={step: values for watcher in sessions for step, values in watcher.steps.items()},
        checkpoint=resume,
        sessions=sessions,
    )


@contextlib.contextmanager
def computing_in(precision: str | None) -> Iterator[None]:
    """Sessions inside the block compute like another machine: `fp16` as a T4, `fp32` as a CPU.

    None changes nothing.
    """
    from worker.training.backends import base

    real = base.precision_of
    base.precision_of = (lambda _: precision) if precision else real
    try:
        yield
    finally:
        base.precision_of = real


def tensors_sha256(path: Path, prefix: str) -> str:
    """Hash over names, types and bytes of the checkpoint's tensors with the name prefix `prefix`."""
    tensors, _ = checkpoint_file.load(path)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if name.startswith(prefix):
            digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode() + tensors[name].tobytes())
    return digest.hexdigest()


def largest_difference(one: Path, other: Path, prefix: str) -> float:
    """Largest absolute difference between two checkpoints over tensors with the name prefix `prefix`, in fp64."""
    import numpy as np

    first, second = checkpoint_file.load(one)[0], checkpoint_file.load(other)[0]
    names = [name for name in first if name.startswith(prefix) and first[name].dtype.kind == "f"]
    return max((float(np.abs(first[n].astype(np.float64) - second[n]).max()) for n in names), default=0.0)
