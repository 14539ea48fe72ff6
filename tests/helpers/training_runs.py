"""Runs a job in one or several sessions, every session from fresh objects and a checkpoint file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker.shared import checkpoint_file
from worker.shared.job_spec import JobSpec
from worker.training.interface import Decision, Trained, TrainingJob

ROWS = 23
"""Rows of the usual data set."""


@dataclass
class Recorder:
    """Hooks that note everything and decide by step number."""

    decisions: dict = field(default_factory=dict)
    steps: list = field(default_factory=list)
    snapshots: list = field(default_factory=list)
    phases: list = field(default_factory=list)
    parts: list = field(default_factory=list)
    restores: list = field(default_factory=list)
    lowerings: list = field(default_factory=list)
    measures: dict = field(default_factory=dict)
    samples: list = field(default_factory=list)

    def phase(self, phase):
        self.phases.append(phase.value)

    def begins(self, part):
        self.parts.append(part)

    def lost(self, words):
        raise AssertionError(words)

    def restored(self, step, fidelity, backend):
        self.restores.append((step, fidelity.value, backend))

    def lowered(self, fidelity, why):
        self.lowerings.append((len(self.steps), fidelity.value, why))

    def step_done(self, step, values, seconds):
        self.steps.append((step, dict(values)))
        return self.decisions.get(step, Decision.CONTINUE)

    def measured(self, step, values):
        self.measures[step] = dict(values)

    def sampled(self, samples):
        self.samples.extend(samples)

    def save(self, snapshot):
        self.snapshots.append(snapshot)


@dataclass
class Outcome:
    """A whole run: the last session's result, and what all sessions reported."""

    trained: Trained
    steps: list
    tensors: dict
    manifest: Any
    measures: dict
    sessions: list
    checkpoint: Path


@dataclass
class TrainingRuns:
    base: Path
    dataset: Path
    rows: int
    folder: Path
    runs: int = 0
    start: Path | None = None
    """The archive of the adapter that jobs with a `lora_model` continue from."""

    def spec(self, **changes):
        plain = {
            "base_model": str(self.base),
            "datasets": ({"path": "chat", "rows": self.rows, "sha256": "0" * 64},),
            "lora_r": 4,
            "max_steps": 9,
            "global_batch_size": 4,
            "micro_batch_size": 2,
            "sequence_len": 64,
            "learning_rate": 1e-2,
        }
        return JobSpec(**(plain | changes))

    def session(self, spec, resume=None, decisions=None, name="work", job="job", origin=None, **how):
        """One session; `how` goes to `train`."""
        from worker.training.train import train

        hooks = Recorder(decisions or {})
        work = self.folder / name
        work.mkdir(exist_ok=True)
        datasets = (self.dataset, self.start) if spec.lora_model is not None and self.start else (self.dataset,)
        asked = TrainingJob(job=job, fence=1, spec=spec, datasets=datasets, resume=resume, work_dir=work, origin=origin)
        return train(asked, hooks, **how), hooks

    def run(self, spec, cuts=(), **how):
        """The whole job, interrupted after each of `cuts`; `how` goes to `train`."""
        self.runs += 1
        resume, sessions, result = None, [], None
        for number, cut in enumerate([*cuts, None]):
            decisions = {} if cut is None else {cut: Decision.SAVE_AND_STOP}
            result, hooks = self.session(spec, resume, decisions, name=f"run{self.runs}", **how)
            sessions.append(hooks)
            if not hooks.snapshots:  # a job that had stopped early saves no more
                continue
            resume = self.folder / f"run{self.runs}" / f"{number}.safetensors"
            checkpoint_file.write(resume, hooks.snapshots[-1].tensors, hooks.snapshots[-1].manifest)
        assert resume is not None
        assert result is not None
        tensors, manifest = checkpoint_file.load(resume)
        steps = [step for hooks in sessions for step in hooks.steps]
        measures = {step: values for hooks in sessions for step, values in hooks.measures.items()}
        return Outcome(result, steps, tensors, manifest, measures, sessions, resume)


def differing(a, b):
    """Names of tensors that are not equal to the last bit."""
    return sorted(
        name
        for name in a.keys() | b.keys()
        if name not in a or name not in b or a[name].dtype != b[name].dtype or a[name].tobytes() != b[name].tobytes()
    )
