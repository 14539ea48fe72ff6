"""Tasks for both models of an evaluation: a prompt, and the check of the answer by a program.

A file of tasks has one JSON object in each line. The fixed prompts that come with the product are such a file. Those
without a check ask for something harmless that no model should refuse.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from worker.shared.answer_checks import CheckError, compiled
from worker.shared.dataset_containers import READERS
from worker.shared.dataset_spec import FileFormat, RowFormat
from worker.shared.row_formats import to_row
from worker.shared.row_keys import DatasetError
from worker.shared.rows import Message

_FIXED_FILE = "fixed_prompts.jsonl"


@dataclass(frozen=True, slots=True)
class Task:
    """A task in `line` (from 1) of its file. `is_text`: its prompt is a text and not turns."""

    line: int
    turns: tuple[Message, ...]
    is_text: bool
    check: dict[str, Any] | None


def read_tasks(path: Path, container: FileFormat) -> Iterator[Task]:
    """The tasks of a file. Raises `DatasetError` at the first bad one. Patterns and schemas are not looked at."""
    for line, record in READERS[container](path):
        yield _task(line, record, to_row(RowFormat.TASK, line, record).messages)


def _task(line: int, record: dict[str, Any], turns: tuple[Message, ...]) -> Task:
    return Task(line=line, turns=turns, is_text="prompt" in record, check=record.get("check"))


@cache
def fixed_prompts() -> tuple[Task, ...]:
    """The fixed prompts in their order."""
    records = enumerate(map(json.loads, _fixed().splitlines()), 1)
    return tuple(_task(line, record, (Message("user", record["prompt"]),)) for line, record in records)


@cache
def fixed_sha256() -> str:
    """Hash of the file of fixed prompts. It belongs to the number in `measures` of an evaluation."""
    return hashlib.sha256(_fixed()).hexdigest()


def _fixed() -> bytes:
    return resources.files("worker.shared").joinpath(_FIXED_FILE).read_bytes()  # a worker may run out of its wheel


def first_fault(request: dict[str, Any]) -> dict[str, Any]:
    """The first task of a file with a pattern or schema that cannot be used. For a process with limits."""
    try:
        for task in read_tasks(Path(request["path"]), FileFormat(request["container"])):
            try:
                compiled(task.check)
            except CheckError as error:
                raise DatasetError(str(error), task.line) from None
    except DatasetError as error:
        return {"fault": error.message, "line": error.line}
    return {}
