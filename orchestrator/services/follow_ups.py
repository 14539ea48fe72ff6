"""Job files of jobs that follow another one: its evaluations and exports."""

from __future__ import annotations

from typing import Any

from worker.shared.job_spec import JobSpec


def follow_up(spec: JobSpec, what: str, **changes: Any) -> JobSpec:
    """The job file of `what` ("Evaluation", "Export") of a job, with `changes`.

    It ends with its own result: no evaluation, push or samples follow. It never goes before other jobs.
    """
    return spec.model_copy(
        update={
            "name": f"{what} of {spec.name}"[:200],
            "evaluate": None,
            "hub_model_id": None,
            "hub_private": True,
            "sample_prompts": (),
            "deadline": None,
            "priority": min(0, spec.priority),
            **changes,
        }
    )
