"""When a job ends before its last step: after a number of evaluations without a lower validation loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.shared.job_spec import JobSpec


def may_end_at(spec: JobSpec, step: int) -> bool:
    """Whether the job may end early at this step.

    It is one of an evaluation, and at least `early_stopping_patience` others came before.
    """
    patience = spec.early_stopping_patience
    return patience is not None and step % spec.eval_every == 0 and step // spec.eval_every > patience


def ended_early(patience: int, step: int) -> str:
    """How such a job ended, for people."""
    times = "1 evaluation" if patience == 1 else f"{patience} evaluations"
    return f"stopped early at step {step}: validation loss did not improve in {times}"
