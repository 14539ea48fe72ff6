"""The seam between the runner (leases, deadlines, saving) and the trainer (models, tensors, steps)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from worker.agent.limits import Part
    from worker.shared.messages import Fidelity, JobSpec, Manifest, Origin, Phase, Sample


class PermanentError(Exception):
    """The job itself cannot run (bad data, no such module, wrong checkpoint): no other machine would fare better."""


class UnfitMachineError(Exception):
    """This machine cannot run the job (memory, missing GPU); another one may. `cause` is one of `worker.shared.causes`."""

    def __init__(self, message: str, cause: str = "") -> None:
        super().__init__(message)
        self.cause = cause


class Decision(Enum):
    """What the runner wants after a step."""

    CONTINUE = "continue"
    SAVE = "save"
    SAVE_AND_STOP = "save_and_stop"
    STOP = "stop"


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """Everything the trainer needs, already on this machine; `origin` where `resume` is another job's checkpoint.

    `base_folder` holds the base model; None to have it found by the job's own name for it.
    """

    job: str
    fence: int
    spec: JobSpec
    datasets: tuple[Path, ...]
    resume: Path | None
    work_dir: Path
    base_folder: Path | None = None
    origin: Origin | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A run at the end of one step, copied to host memory: nothing in it changes once `ready` has returned.

    `tensors` maps names to C-contiguous arrays; `manifest.parent` is left for the runner to fill in. Waiting for `ready`
    is the business of whoever reads them: the copy may still be under way while training goes on.
    """

    tensors: Mapping[str, np.ndarray]
    manifest: Manifest
    ready: Callable[[], None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Resume:
    """A verified checkpoint of this very run, or of the one that it goes on from."""

    arrays: Mapping[str, np.ndarray]
    manifest: Manifest


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Where `train` stopped. `adapter_zip` and `adapter_sha256` are set when the job's last step is done."""

    step: int
    complete: bool
    adapter_zip: Path | None = None
    adapter_sha256: str | None = None


class Hooks(Protocol):
    """What the trainer calls; every call returns quickly and never raises."""

    def phase(self, phase: Phase) -> None:
        """The trainer begins to spend its time on `phase`."""

    def begins(self, part: Part) -> None:
        """The trainer begins another part of what comes before the first step; its limit counts from now."""

    def lost(self, words: str) -> None:
        """Another process of this session died and the session cannot go on; may end this process."""

    def restored(self, step: int, fidelity: Fidelity, backend: str) -> None:
        """The state is in place and `step` updates are done (0 for a fresh start)."""

    def step_done(self, step: int, values: Mapping[str, float], seconds: float) -> Decision:
        """Update number `step` is done; `values` holds loss, grad_norm, learning_rate, tokens."""
        ...

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """More values of an earlier reported step, such as `eval_loss`."""

    def sampled(self, samples: tuple[Sample, ...]) -> None:
        """Answers to the job's sample prompts."""

    def save(self, snapshot: Snapshot) -> None:
        """Take over a snapshot; the trainer goes on at once."""
