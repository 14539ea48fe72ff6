"""The prompts of an evaluation, pinned, and refused in one sentence where there can be none."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from orchestrator.domain.errors import InvalidError
from orchestrator.services import evaluation_judges
from orchestrator.services.context import Context
from orchestrator.services.datasets import resolve_dataset
from orchestrator.services.evaluation_benchmarks import pinned_benchmarks
from orchestrator.services.evaluation_judges import pinned_judge
from orchestrator.services.evaluation_tasks import pinned_tasks
from worker.shared.dataset_spec import DatasetSpec, RowFormat
from worker.shared.evaluation_spec import LEAST_PROMPTS, MEASURES, EvaluationSpec
from worker.shared.job_spec import JobSpec

_WITHOUT_PROMPTS = RowFormat.TEXT


def pinned(
    ctx: Context,
    member_id: str,
    spec: JobSpec,
    asked: EvaluationSpec,
    *,
    pointer: str = "",
    given: Collection[str] = (),
) -> EvaluationSpec:
    """The settings with the bytes of their files pinned. Without prompts, the validation rows of `spec` are asked.

    `pointer` is the place of the settings in the request. `given` are files of a job that the member may clone. Raises
    `InvalidError` if there are no prompts, or if a task, a benchmark or a judge model cannot be used.
    """
    prompts = _pinned_prompts(ctx, member_id, spec, asked.prompts, pointer, given)
    tasks = pinned_tasks(ctx, member_id, asked.tasks, f"{pointer}/tasks/path", given)
    benchmarks = pinned_benchmarks(ctx, member_id, asked.benchmarks, f"{pointer}/benchmarks", given)
    judge = pinned_judge(ctx, member_id, spec, asked, f"{pointer}/judge/model")
    pins = {"prompts": prompts, "tasks": tasks, "benchmarks": benchmarks, "judge": judge, "measures": MEASURES}
    return asked.model_copy(update=pins)


def _pinned_prompts(
    ctx: Context, member_id: str, spec: JobSpec, asked: DatasetSpec | None, pointer: str, given: Collection[str]
) -> DatasetSpec | None:
    if asked is None:
        _refuse_plain_text(spec.datasets, f"{pointer}/prompts")
        if spec.eval_rows == 0:
            raise InvalidError(
                "The job has no validation rows to take prompts from. Give a file of prompts"
                f"{' or set val_set_size' if pointer else ''}.",
                [(f"{pointer}/prompts", "is needed, because the job has no validation rows")],
            )
        return None
    if asked.repeats != 1:
        words = "Prompts have no repeats. Remove the key."
        raise InvalidError(words, [(f"{pointer}/prompts/repeats", words)])
    found = resolve_dataset(ctx, member_id, asked, f"{pointer}/prompts/path", given)
    _refuse_plain_text((found,), f"{pointer}/prompts/type")
    return found


def _refuse_plain_text(datasets: Sequence[DatasetSpec], pointer: str) -> None:
    if all(dataset.type is _WITHOUT_PROMPTS for dataset in datasets):
        raise InvalidError(
            "Rows of plain text have no prompts. Give a file of prompts with conversations, or with prompt and "
            "completion.",
            [(pointer, "are rows of plain text")],
        )


def count(spec: JobSpec, asked: EvaluationSpec) -> int:
    """Prompts that are asked at most. Both are pinned."""
    return min(asked.max_prompts, spec.eval_rows if asked.prompts is None else asked.prompts.rows or 0)


def notes(spec: JobSpec, asked: EvaluationSpec) -> tuple[str, ...]:
    """What the author should know. Both are pinned."""
    prompts = count(spec, asked)
    there = "There is only 1 prompt" if prompts == 1 else f"There are only {prompts} prompts"
    few = f"{there}. A verdict needs at least {LEAST_PROMPTS}, and 100 are better."
    return (*((few,) if prompts < LEAST_PROMPTS else ()), *evaluation_judges.notes(spec, asked))
