"""When a job ends before its last step: after a number of evaluations without a lower validation loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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


def chosen_step(spec: JobSpec, best: Any) -> int | None:
    """The step whose adapter a job ends with. None if that is the last one, or not known.

    `best` is what its last checkpoint says of the best evaluation.
    """
    step = best.get("step") if isinstance(best, Mapping) and spec.load_best_model_at_end else None
    return step if type(step) is int and 0 < step <= spec.total_steps else None


def chosen(step: int) -> str:
    """Which adapter a job has ended with, for people."""
    return f"this is the adapter of step {step}, which had the lowest validation loss"
