"""An evaluation in a job file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from worker.shared.benchmark_list import BENCHMARKS
from worker.shared.dataset_spec import DatasetSpec, FileFormat, RowFormat
from worker.shared.plain_errors import MAX_KEY
from worker.shared.wire import NonBlank, Sha256, Written, excerpt

MEASURES = 2
"""What new evaluations measure besides answers and general text: the loss on the rows' own answers, and answers to the
fixed prompts. One without a number began before. A change of the fixed prompts needs another number."""

MAX_TASKS = 500
"""Tasks of one evaluation at most."""
MAX_PROMPTS, LEAST_PROMPTS = 500, 30
"""Prompts of one evaluation at most, and prompts below which there will be no verdict."""


MAX_JUDGE_NAME = 180
"""Characters of the name of a judge model, commit included."""


class BenchmarkSpec(Written):
    """A benchmark, as its name or as `NAME@COMMIT` with a commit of its repository on the hub.

    The server sets the commit, if there is none, and everything else at submission. `sha256` and `rows` are those of
    the file of items, `task_sha256` is that of the file with the task of lm-eval.
    """

    name: NonBlank
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    sha256: Sha256 | None = None
    rows: Annotated[int, Field(ge=1)] | None = None
    task_sha256: Sha256 | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_its_name(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        name, at, revision = value.partition("@")
        return {"name": name, "revision": revision} if at else {"name": name}

    @field_validator("name")
    @classmethod
    def _known_benchmark(cls, name: str) -> str:
        if name not in BENCHMARKS:
            shown = excerpt(name, MAX_KEY)
            raise ValueError(f"there is no benchmark '{shown}'; there are {', '.join(BENCHMARKS)}")
        return name

    @property
    def items(self) -> DatasetSpec:
        """The file of its items. Known after the server has resolved it."""
        path = f"sha256:{self.sha256 or ''}"
        return DatasetSpec(
            path=path, type=RowFormat.TEXT, sha256=self.sha256, file_format=FileFormat.JSONL, rows=self.rows
        )


class JudgeSpec(Written):
    """A model that compares the answers on the machine of the evaluation, as its name alone or with this key.

    `model` is an id on the hub, if wanted as `ORG/NAME@COMMIT`, or a folder. The server pins the commit and sets
    everything else at submission: the version of the question to the judge, and the memory that it needs (None: not
    known).
    """

    model: Annotated[NonBlank, Field(max_length=MAX_JUDGE_NAME)]
    prompt_version: Annotated[int, Field(ge=1)] | None = None
    gpu_bytes: Annotated[int, Field(ge=0)] | None = None
    host_bytes: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_its_name(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value


class EvaluationSpec(Written):
    """Prompts that the base model and the adapter answer.

    `temperature` 0 takes the most probable token. `prompts` is an uploaded file with rows as for training, without
    their answers. Without it the prompts are those of the job's validation rows. `tasks` is an uploaded file of tasks
    with checks. `benchmarks` are names of benchmarks. `judge` is a model that compares the answers.
    """

    max_prompts: Annotated[int, Field(ge=1, le=MAX_PROMPTS)] = 100
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 256
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    prompts: DatasetSpec | None = None
    tasks: DatasetSpec | None = Field(default=None, exclude_if=lambda file: file is None)
    benchmarks: Annotated[tuple[BenchmarkSpec, ...], Field(max_length=len(BENCHMARKS))] = Field(
        default=(), exclude_if=lambda asked: not asked
    )
    judge: JudgeSpec | None = Field(default=None, exclude_if=lambda judge: judge is None)
    measures: Annotated[int, Field(ge=2, le=MEASURES)] | None = Field(default=None, exclude_if=lambda way: way is None)
    """Set by the server. Left out of an old evaluation, because an older worker refuses keys that it does not know."""

    @field_validator("judge", mode="before")
    @classmethod
    def _none_in_a_form(cls, judge: Any) -> Any:
        return None if judge == "" else judge

    @field_validator("benchmarks")
    @classmethod
    def _each_once(cls, asked: tuple[BenchmarkSpec, ...]) -> tuple[BenchmarkSpec, ...]:
        names = [each.name for each in asked]
        if len(set(names)) < len(names):
            raise ValueError("must name each benchmark once")
        return asked
