"""Jobs, events and checkpoints as OpenAI's API shows them. Pure functions of rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from orchestrator.domain.errors import NotFoundError
from orchestrator.domain.lifecycle import JobState
from orchestrator.entrypoints.openai.answers import (
    FineTuningCheckpoint,
    FineTuningEvent,
    FineTuningJob,
    JobError,
)
from orchestrator.entrypoints.openai.file_ids import Result, upload_id
from orchestrator.entrypoints.openai.translation import LEARNING_RATE, metadata_of
from worker.shared.job_spec import JobSpec

Row = Mapping[str, Any]
_STATUS = {JobState.LEASED: "queued"}
"""States that have another name. A machine that starts has not begun to train."""
_EVENT = re.compile(r"ftevent-(\d{1,18})")
_ERRORS = frozenset({"job.failed"})
_WARNINGS = re.compile(r"job\.(stalled|not_\w+)|checkpoint\.(corrupt|refused|not_\w+)")


def trains(spec: Row) -> bool:
    """Whether this is the job file of a job that trains."""
    return not any(spec.get(key) for key in ("evaluation", "export", "chat"))


def job(row: Row, facts: Row, now: float) -> FineTuningJob:
    """A job from its row in a list, and its `facts`."""
    spec, state = JobSpec.model_validate(facts["spec"]), JobState(row["state"])
    done, left = state is JobState.SUCCEEDED, row["eta_seconds"]
    settings = _hyperparameters(spec)
    kind = "dpo" if spec.rl == "dpo" else spec.rl or "supervised"
    return FineTuningJob(
        id=row["id"],
        created_at=int(row["created_at"]),
        finished_at=_whole(facts["ended"]) if state.is_final else None,
        estimated_finish=_whole(now + left) if left is not None else None,
        model=spec.base_model,
        fine_tuned_model=row["id"] if done and row["adapter"] else None,
        organization_id=row["member"],
        status=_STATUS.get(state, state.value),  # pyright: ignore[reportArgumentType]  checked by the model
        error=_error(row, state),
        training_file=upload_id(spec.datasets[0].sha256 or ""),
        result_files=_results(row, state),
        trained_tokens=_whole(facts["tokens"]) if done else None,
        hyperparameters=settings,
        method={"type": kind, kind: {"hyperparameters": settings}},
        seed=spec.seed,
        user_provided_suffix=None if spec.name == JobSpec.model_fields["name"].default else spec.name,
        metadata=metadata_of(row["note"]),
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _hyperparameters(spec: JobSpec) -> dict[str, float]:
    """Whole passes over the rows, rows of a step, and the share of the usual learning rate."""
    passes = spec.total_steps * spec.global_batch_size // spec.train_rows if spec.train_rows > 0 else 0
    found: dict[str, float] = {
        "n_epochs": max(1, passes),
        "batch_size": spec.global_batch_size,
        "learning_rate_multiplier": spec.learning_rate / LEARNING_RATE,
    }
    beta = spec.method_settings.get("rl_beta")
    return found if beta is None else {**found, "beta": beta}


def _error(row: Row, state: JobState) -> JobError | None:
    if state is not JobState.FAILED:
        return None
    return JobError(code=str(row["end_reason"] or "failed"), message=row["message"])


def _results(row: Row, state: JobState) -> list[str]:
    """Ids of the files of an ended job."""
    if not state.is_final:
        return []
    metrics = [Result(row["id"], "metrics").id] if row["loss"] else []
    return [*metrics, *([Result(row["id"], "adapter").id] if row["adapter"] else [])]


def event(row: Row) -> FineTuningEvent:
    """An event as a sentence."""
    noun, _, words = row["kind"].partition(".")
    step = row["data"].get("step")
    said = f"{noun.capitalize()} {words.replace('_', ' ')}" + (f" at step {step}" if step is not None else "")
    level = "error" if row["kind"] in _ERRORS else "warn" if _WARNINGS.fullmatch(row["kind"]) else "info"
    return FineTuningEvent(
        id=f"ftevent-{row['id']}",
        created_at=int(row["at"]),
        level=level,
        message=f"{said}: {row['reason']}" if row["reason"] else said,
        data={"kind": row["kind"], **row["data"]},
    )


def event_number(event_id: str) -> int:
    """The number in an event's id. Raises `NotFoundError` for what is none."""
    found = _EVENT.fullmatch(event_id)
    if found is None:
        raise NotFoundError(f"There is no event {event_id}.")
    return int(found[1])


def checkpoint(job_id: str, row: Row, losses: Mapping[str, float]) -> FineTuningCheckpoint:
    """A checkpoint with the losses of its step, as far as they are known."""
    named = {"train_loss": losses.get("loss"), "full_valid_loss": losses.get("eval_loss")}
    return FineTuningCheckpoint(
        id=row["sha256"],
        created_at=int(row["created_at"]),
        fine_tuned_model_checkpoint=f"{job_id}:ckpt-step-{row['step']}",
        fine_tuning_job_id=job_id,
        metrics={"step": row["step"], **{name: value for name, value in named.items() if value is not None}},
        step_number=row["step"],
    )
