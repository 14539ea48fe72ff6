"""Jobs that follow another one: its evaluations, exports and chats."""

from __future__ import annotations

from typing import Any

from orchestrator.domain.errors import ConflictError
from orchestrator.domain.jobs import Job
from worker.shared.job_spec import JobSpec

_WORDS = {
    "evaluation": ("an evaluation itself", "evaluates"),
    "export": ("an export", "exports"),
    "chat": ("a chat", "uses"),
}
"""What such a job is and what it does with the other one, by its key in the job file."""


def follow_up(spec: JobSpec, what: str, **changes: Any) -> JobSpec:
    """The job file of `what` ("Evaluation", "Export", "Chat") of a job, with `changes`.

    It ends with its own result: no evaluation, push, report or samples follow. It never goes before other jobs.
    """
    return spec.model_copy(
        update={
            "name": f"{what} of {spec.name}"[:200],
            "evaluate": None,
            "hub_model_id": None,
            "hub_private": True,
            "report_to": (),
            "sample_prompts": (),
            "deadline": None,
            "priority": min(0, spec.priority),
            **changes,
        }
    )


def refuse_follow_up(job: Job, do: str) -> None:
    """Raise `ConflictError` for a job that follows another one. `do` says what to do with the other one instead."""
    for key, (what, does) in _WORDS.items():
        if job.spec.get(key) is not None:
            raise ConflictError(f"Job {job.id} is {what}. {do} the job that it {does}.")
