"""The interface between the agent (leases, deadlines, saving) and the trainer (models, tensors, steps)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from worker.agent.limits import Part
    from worker.shared.job_spec import JobSpec
    from worker.shared.manifest import Fidelity, Manifest
    from worker.shared.messages import Origin, Phase, Sample
    from worker.shared.results import StoredExport


class PermanentError(Exception):
    """The job itself cannot run (bad data, no such module, wrong checkpoint). It would fail on any machine.

    The message says what to change.
    """


class UnsoundStateError(Exception):
    """The state of the run has NaN or infinite values, so it must not be saved. Another session may not get there."""


class UnfitMachineError(Exception):
    """This machine cannot run the job (memory, missing GPU), but another one may.

    `cause` is one of `worker.shared.causes`. `has_remedy`: the message says what to do.
    """

    def __init__(self, message: str, cause: str = "", *, has_remedy: bool = True) -> None:
        super().__init__(message)
        self.cause, self.has_remedy = cause, has_remedy


class Decision(Enum):
    """What to do after a step."""

    CONTINUE = "continue"
    SAVE = "save"
    SAVE_AND_STOP = "save_and_stop"
    STOP = "stop"


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """Everything that the trainer needs, already on this machine.

    `origin` is set if `resume` is a checkpoint of another job. `base_folder` contains the base model. None means that
    the trainer resolves the job's `base_model`. `judge_folder` is the same for the judge model of an evaluation.
    The one data file of an export or a chat is the adapter's archive.
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
    judge_folder: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state of a run at the end of one step, copied to host memory. It is final after `ready` has returned.

    `tensors` maps names to C-contiguous arrays. `manifest.parent` is set by the saver. Readers must call `ready` first,
    because the copy may still be running while training continues.
    """

    tensors: Mapping[str, np.ndarray]
    manifest: Manifest
    ready: Callable[[], None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Resume:
    """A verified checkpoint of this run, or of the run that it was cloned from."""

    arrays: Mapping[str, np.ndarray]
    manifest: Manifest


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Where a session stopped.

    After the last step, `adapter_zip` and `adapter_sha256` are set, or `answers`, or `export`. A chat leaves nothing.
    """

    step: int
    complete: bool
    adapter_zip: Path | None = None
    adapter_sha256: str | None = None
    answers: Path | None = None
    export: StoredExport | None = None


class Hooks(Protocol):
    """Callbacks of the trainer. Each call returns quickly and never raises."""

    def phase(self, phase: Phase) -> None:
        """The trainer enters `phase`."""

    def begins(self, part: Part) -> None:
        """The trainer starts another part of the work before the first step. The part's time limit starts now."""

    def lost(self, words: str) -> None:
        """Another process of this session has failed, and the session cannot continue. May end this process."""

    def restored(self, step: int, fidelity: Fidelity, backend: str) -> None:
        """The state is loaded and `step` updates are done (0 for a new run)."""

    def lowered(self, fidelity: Fidelity, why: str) -> None:
        """The session is no longer as exact as `restored` said."""

    def step_done(self, step: int, values: Mapping[str, float], seconds: float) -> Decision:
        """Update number `step` is done. `values` contains loss, grad_norm, learning_rate and tokens."""
        ...

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """Further values of a step that was reported before, such as `eval_loss`."""

    def sampled(self, samples: tuple[Sample, ...]) -> None:
        """Answers to the job's sample prompts."""

    def save(self, snapshot: Snapshot) -> None:
        """Save a snapshot in the background. Training continues at once."""
