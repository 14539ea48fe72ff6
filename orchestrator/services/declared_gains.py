"""Whether the gain that was declared with a margin is shown, from the scores of the evaluation's tasks."""

from __future__ import annotations

from typing import Any

from orchestrator.domain.choices import GainKind
from orchestrator.domain.evaluations import Evaluation
from orchestrator.domain.jobs import Job
from orchestrator.domain.trust.declared_gain import Gain, SolvedTasks, task_gain
from orchestrator.domain.trust.verdict import MAX_TRUNCATED
from orchestrator.ports.repository import Transaction
from orchestrator.services.held_out_checking import held_out_of_card, known
from worker.shared.data_checks.leaks import TASKS
from worker.shared.job_spec import JobSpec


def scores_of(evaluation: Evaluation) -> dict[str, Any] | None:
    """The scores of an evaluation's tasks, or None if no task was scored."""
    return _tasks(evaluation).get("scores")


def _tasks(evaluation: Evaluation) -> dict[str, Any]:
    return (evaluation.report or {}).get("tasks") or {}


def gain_of(tx: Transaction, job: Job, evaluation: Evaluation, kind: GainKind | None) -> Gain | None:
    """The gain of the adapter of `job` that its owner has declared, or None if none was."""
    if kind is None:
        return None
    scores = scores_of(evaluation)
    if scores is None:
        return task_gain(None)
    found = SolvedTasks(
        tasks=scores["prompts"],
        base=scores["base"],
        adapter=scores["adapter"],
        only_base=len(scores["only_base"]),
        only_adapter=len(scores["only_adapter"]),
        are_cut=max(_tasks(evaluation)["truncated"].values()) > MAX_TRUNCATED,
        are_trained_on=_are_trained_on(tx, job, evaluation),
    )
    return task_gain(found)


def _are_trained_on(tx: Transaction, job: Job, evaluation: Evaluation) -> bool:
    """Whether the data checks have found tasks among the training rows, and their owner has accepted that."""
    asked = held_out_of_card(JobSpec.model_validate(job.spec), evaluation.settings)
    reports = [known(tx, each) for each in asked if each.names == TASKS]
    return any(finding.level == "stop" for report in reports if report is not None for finding in report.findings)
