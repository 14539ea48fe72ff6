"""The tasks of an evaluation as tokens: the fixed prompts, and the file of the user."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.shared.dataset_files import DatasetError
from worker.shared.dataset_spec import FileFormat
from worker.shared.evaluation_units import Measure
from worker.shared.job_spec import JobSpec
from worker.shared.tasks import Task, fixed_prompts, read_tasks
from worker.training.encoding import Encoder
from worker.training.interface import PermanentError
from worker.training.model_limits import ModelLimits


@dataclass(frozen=True, kw_only=True)
class Questions:
    """The tasks by their numbers, and the token ids of those that have room: only these are asked."""

    tasks: Mapping[int, Task]
    ids: Mapping[int, list[int]]

    @property
    def asked(self) -> dict[int, Task]:
        """The tasks that are asked."""
        return {number: self.tasks[number] for number in self.ids}


def questions(tasks: Iterable[Task], encoder: Encoder, limits: ModelLimits, *, chat: bool, room: int) -> Questions:
    """Prompts of at most `room` tokens. Without `chat`, a prompt that is a text is asked as it is.

    Raises `PermanentError` if the chat template refuses one.
    """
    by_number = dict(enumerate(tasks))
    ids: dict[int, list[int]] = {}
    for number, task in by_number.items():
        plain = task.is_text and not chat
        tokens = encoder.prompt_ids(task.turns[0].content, chat=False) if plain else encoder.answer_prompt(task.turns)
        limits.check(tokens[:room], f"the task in line {task.line}")
        if len(tokens) <= room:
            ids[number] = tokens
    return Questions(tasks=by_number, ids=ids)


def tasks_of(spec: JobSpec, path: Path | None = None) -> dict[Measure, tuple[Task, ...]]:
    """The tasks of an evaluation. `path` is the file of the user. Raises `PermanentError` if it is invalid."""
    asked = spec.evaluation
    if asked is None:
        return {}
    mine: tuple[Task, ...] = ()
    if asked.tasks is not None and path is not None:
        try:
            mine = tuple(read_tasks(path, asked.tasks.file_format or FileFormat.JSONL))
        except DatasetError as error:
            raise PermanentError(f"the tasks {asked.tasks.path}: {error}") from error
        if len(mine) != asked.tasks.rows:
            raise PermanentError(f"there are {len(mine)} tasks, but the job expects {asked.tasks.rows}; evaluate again")
    return {Measure.FIXED: fixed_prompts() if asked.measures else (), Measure.TASKS: mine}
