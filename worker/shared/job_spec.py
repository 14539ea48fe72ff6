"""The job file."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, field_validator, model_validator

from worker.shared import methods
from worker.shared.adapter_settings import AdapterSettings
from worker.shared.data_check_list import CHECKS
from worker.shared.dataset_spec import DatasetSpec, TaughtTurns
from worker.shared.evaluation_spec import EvaluationSpec
from worker.shared.evaluation_units import Unit, prompts_at_once, units
from worker.shared.export_spec import ChatSpec, ExportSpec
from worker.shared.hub_names import RepoName
from worker.shared.judge_prompt import MAX_OUTPUT_TOKENS, TEXT_TOKENS
from worker.shared.long_texts import Strategy
from worker.shared.methods import MethodKeys
from worker.shared.own_template import USUAL, Template, TemplateName, fault_of, template_of
from worker.shared.plain_errors import MAX_KEY, nearest
from worker.shared.report_to import ReportTo
from worker.shared.schedules import Schedule, ScheduleSettings, fault, too_long
from worker.shared.start_adapter import StartAdapterKeys
from worker.shared.wire import NonBlank, Written, excerpt, not_blank

ENCODING = 4
"""How rows become tokens in new jobs. A job without a number began before there were several ways, and keeps the first:
prompt and completion are tokenised apart, and keys that no format reads fall away. A job with 2 writes rows with the
model's own chat template."""

WITH_TRAINING_TEMPLATES = 3
"""From here on, rows are written with TRL's training template where TRL has one for the model's chat template."""

WITH_TURNS_KEYS = 4
"""From here on, turns may say whether they are trained on, and have thoughts, tool calls and names of tools."""

NUMERICS = 2
"""How new jobs compute: the warm-up begins with the share of the first step, and attention is the one that the model
defines. A job without a number began with a first step at a learning rate of 0 and the library's attention. It keeps
both.
"""

VAL_SPLIT = 2
"""How new jobs choose validation rows: copies of a row stay on one side. A job without a number chose single rows."""

WARMUP_RATIO = 0.03
BETAS, EPSILON = (0.9, 0.999), 1e-8
"""AdamW's usual settings. A job file that keeps to them does not name them, because older workers refuse the keys."""
Beta = Annotated[float, Field(ge=0, lt=1)]
LORAPLUS_EMBEDDING = 1e-6
"""The learning rate of an adapter on an embedding where `loraplus_lr_ratio` is set. PEFT and axolotl have the same."""

T = TypeVar("T")


class CheckpointSpec(Written):
    """How often to save and how many checkpoints to keep."""

    max_interval_s: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    keep: Annotated[int, Field(ge=1, le=100)] = 2


class PlacementSpec(Written):
    """Where the job can run. Empty lists mean all accounts of its owner and all pools."""

    providers: tuple[NonBlank, ...] = ()
    accounts: tuple[NonBlank, ...] = ()
    max_session_s: Annotated[float, Field(ge=1, le=1e9)] | None = None


_DEADLINE = "must be a time with its zone, for example 2026-12-01T18:00:00+01:00"


def _time(text: str, parse: Callable[[str], T]) -> T:
    try:
        return parse(text)
    except ValueError:
        raise ValueError(_DEADLINE) from None


class Subject(Written):
    """What is trained on what. These keys come first in a job file."""

    name: Annotated[str, Field(max_length=200), AfterValidator(not_blank)] = "untitled"
    base_model: NonBlank
    datasets: Annotated[tuple[DatasetSpec, ...], Field(min_length=1, max_length=16)]


class JobSpec(StartAdapterKeys, AdapterSettings, MethodKeys, Subject):
    """A fine-tuning job, with the key names of axolotl.

    `global_batch_size` and `max_steps` are part of the job. A machine chooses only its micro-batch.
    """

    sequence_len: Annotated[int, Field(ge=8, le=1_048_576)] = 1024
    global_batch_size: Annotated[int, Field(ge=1, le=65_536)] = 8
    micro_batch_size: Annotated[int, Field(ge=1, le=65_536)] | None = None
    num_epochs: Annotated[float, Field(gt=0, le=10_000)] | None = None
    max_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 2e-4
    loraplus_lr_ratio: Annotated[float, Field(gt=0, le=1024)] = Field(default=1.0, exclude_if=lambda ratio: ratio == 1)
    loraplus_lr_embedding: Annotated[float, Field(gt=0, le=10)] = Field(
        default=LORAPLUS_EMBEDDING, exclude_if=lambda rate: rate == LORAPLUS_EMBEDDING
    )
    lr_scheduler: Schedule = "linear"
    lr_scheduler_kwargs: ScheduleSettings = Field(default=ScheduleSettings(), exclude_if=lambda given: not given.given)
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = WARMUP_RATIO
    warmup_steps: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(default=None, exclude_if=lambda n: n is None)
    optimizer: Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit"] = "adamw_torch"
    adam_beta1: Beta = Field(default=BETAS[0], exclude_if=lambda beta: beta == BETAS[0])
    adam_beta2: Beta = Field(default=BETAS[1], exclude_if=lambda beta: beta == BETAS[1])
    adam_epsilon: Annotated[float, Field(gt=0, le=1)] = Field(default=EPSILON, exclude_if=lambda tiny: tiny == EPSILON)
    max_grad_norm: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    neftune_noise_alpha: Annotated[float, Field(ge=0, le=1000)] = Field(default=0.0, exclude_if=lambda alpha: not alpha)
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    val_set_size: Annotated[float, Field(ge=0, lt=1)] = 0.0
    train_on_inputs: bool = False
    excess_length_strategy: Strategy | None = Field(default=None, exclude_if=lambda way: way is None)
    """What becomes of a text of more than `sequence_len` tokens. Other rows are always cut off.

    A job file without it leaves the choice to the server. The texts of a submitted job without it are cut off: it is
    from a time when all were, has no longer text, or the server could not count the pieces that its epochs need.
    """
    chat_template: TemplateName = Field(default=USUAL, exclude_if=lambda name: name == USUAL)
    chat_template_jinja: Template | None = Field(default=None, exclude_if=lambda text: text is None)
    eval_steps: Annotated[int, Field(ge=1)] | None = None
    early_stopping_patience: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        default=None, exclude_if=lambda patience: patience is None
    )
    load_best_model_at_end: bool = Field(default=False, exclude_if=lambda asked: not asked)
    sample_prompts: Annotated[tuple[NonBlank, ...], Field(max_length=16)] = ()
    sample_max_tokens: Annotated[int, Field(ge=1, le=1024)] = 48
    # They are left out of an old job's file, because an old worker refuses keys that it does not know.
    encoding: Annotated[int, Field(ge=2, le=ENCODING)] | None = Field(default=None, exclude_if=lambda way: way is None)
    numerics: Annotated[int, Field(ge=2, le=NUMERICS)] | None = Field(default=None, exclude_if=lambda way: way is None)
    val_split: Annotated[int, Field(ge=2, le=VAL_SPLIT)] | None = Field(
        default=None, exclude_if=lambda way: way is None
    )

    accept_findings: Annotated[tuple[NonBlank, ...], Field(max_length=len(CHECKS))] = Field(
        default=(), exclude_if=lambda names: not names
    )
    """Checks of the data that do not stop this job. Left out where it is empty, because older workers refuse it."""

    evaluate: EvaluationSpec | None = Field(default=None, exclude_if=lambda asked: asked is None)
    """The evaluation that the server queues when this job is done. No worker gets it: older ones refuse the key."""

    hub_model_id: RepoName | None = Field(default=None, exclude_if=lambda repo: repo is None)
    hub_private: bool = Field(default=True, exclude_if=lambda private: private)
    """Where the server pushes the adapter when this job is done. No worker gets these keys: older ones refuse them."""

    report_to: ReportTo = Field(default=(), exclude_if=lambda names: not names)
    """Trackers that the server writes the curve to. No worker gets it: older ones refuse the key."""

    checkpoint: CheckpointSpec = CheckpointSpec()
    placement: PlacementSpec = PlacementSpec()
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    deadline: float | None = None
    rendered_at: Annotated[float, Field(ge=0, lt=253_402_300_800)] | None = Field(
        default=None, exclude_if=lambda time: time is None
    )
    """The time, in epoch seconds, that chat templates see as now. The server sets it at submission.

    It is left out where it is not set, because older workers refuse keys that they do not know.
    """

    evaluation: EvaluationSpec | None = Field(default=None, exclude_if=lambda asked: asked is None)
    export: ExportSpec | None = Field(default=None, exclude_if=lambda asked: asked is None)
    chat: ChatSpec | None = Field(default=None, exclude_if=lambda asked: asked is None)
    """Set by the server in a job that uses what another one has trained. Older workers refuse them."""

    @field_validator("accept_findings")
    @classmethod
    def _known_checks(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in CHECKS:
                shown = excerpt(name, MAX_KEY)
                hint = nearest(name, CHECKS) or f"; there are {', '.join(CHECKS)}"
                raise ValueError(f"there is no check '{shown}'{hint}")
        return tuple(dict.fromkeys(names))

    @field_validator("deadline", mode="before")
    @classmethod
    def _deadline_in_epoch_seconds(cls, value: Any) -> Any:
        """Convert an ISO 8601 time with a zone, or a YAML timestamp, to epoch seconds."""
        from datetime import date, datetime  # imported only for a job with a deadline

        if isinstance(value, str):
            value = _time(value, datetime.fromisoformat)
        if isinstance(value, datetime) and value.tzinfo is not None:
            return value.timestamp()
        if isinstance(value, date):  # a date alone could mean the start or the end of that day
            raise ValueError(_DEADLINE)  # noqa: TRY004  pydantic reports only ValueError

        return value

    @model_validator(mode="after")
    def _one_length(self) -> JobSpec:
        if self.num_epochs is None and self.max_steps is None:
            raise ValueError("num_epochs or max_steps is required")
        if self.micro_batch_size is not None and self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} does not divide global_batch_size {self.global_batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _all_or_some_turns(self) -> JobSpec:
        if self.train_on_inputs and any(dataset.taught != TaughtTurns() for dataset in self.datasets):
            raise ValueError(
                "train_on_inputs trains on all turns, so it excludes roles_to_train, mask_history and train_on_eos"
            )
        return self

    @model_validator(mode="after")
    def _one_schedule(self) -> JobSpec:
        if words := fault(self.lr_scheduler, self.lr_scheduler_kwargs, self.learning_rate):
            raise ValueError(words)
        if self.warmup_steps is not None and self.warmup_ratio != WARMUP_RATIO:
            raise ValueError("warmup_ratio and warmup_steps exclude each other")
        if self.loraplus_lr_embedding != LORAPLUS_EMBEDDING and self.loraplus_lr_ratio == 1:
            raise ValueError("loraplus_lr_embedding needs loraplus_lr_ratio")
        return self

    @model_validator(mode="after")
    def _loss_to_watch(self) -> JobSpec:
        if self.watches_loss and not self.val_set_size:
            key = "load_best_model_at_end" if self.early_stopping_patience is None else "early_stopping_patience"
            raise ValueError(f"{key} needs validation rows; set val_set_size")
        return self

    @property
    def watches_loss(self) -> bool:
        """Whether the validation loss decides when the job ends, or with which adapter."""
        return self.early_stopping_patience is not None or self.load_best_model_at_end

    @model_validator(mode="after")
    def _one_method(self) -> JobSpec:
        if words := methods.fault(self, self.global_batch_size, train_on_inputs=self.train_on_inputs):
            raise ValueError(words)
        return self

    @model_validator(mode="after")
    def _one_template(self) -> JobSpec:
        if words := fault_of(self.chat_template, self.chat_template_jinja):
            raise ValueError(words)
        return self

    @property
    def own_template(self) -> str | None:
        """The chat template of this job. None for the one that comes with the base model."""
        return template_of(self.chat_template, self.chat_template_jinja)

    @property
    def schedule_fault(self) -> str:
        """Why the schedule does not fit into the steps of a job that trains, or "". Known once the steps are."""
        return too_long(self.lr_scheduler_kwargs, self.warm_up, self.total_steps)

    @property
    def warm_up(self) -> int:
        """Steps in which the learning rate rises."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return math.ceil(self.total_steps * self.warmup_ratio)

    @property
    def used_job(self) -> str | None:
        """The job whose adapter an export or a chat begins with. Such a job has no data files and no checkpoints."""
        asked = self.export or self.chat
        return asked.job if asked is not None else None

    @property
    def rows(self) -> int:
        """Rows of all datasets together. Known after the server has resolved them."""
        return sum(d.rows or 0 for d in self.datasets)

    @property
    def eval_rows(self) -> int:
        """Rows of the validation split, chosen by `seed` before anything else."""
        return min(self.rows - 1, math.ceil(self.rows * self.val_set_size)) if self.val_set_size else 0

    @property
    def train_rows(self) -> int:
        """Rows of one epoch, or their pieces where the server has counted them.

        With `repeats` and a validation split, which rows it has is known to the session alone. Here each file is taken
        to have its share of it.
        """
        if all(dataset.pieces is not None for dataset in self.datasets):
            return max(1, sum(dataset.of_an_epoch(dataset.pieces or 0) for dataset in self.datasets))
        if not self.dataset_repeats or not self.rows:
            return self.rows - self.eval_rows
        drawn = sum(dataset.of_an_epoch(dataset.rows or 0) for dataset in self.datasets)
        return max(1, drawn * (self.rows - self.eval_rows) // self.rows)

    @property
    def dataset_repeats(self) -> tuple[float, ...]:
        """How often an epoch has the rows of each dataset. Empty where it has all of them once."""
        repeats = tuple(dataset.repeats for dataset in self.datasets)
        return repeats if any(times != 1 for times in repeats) else ()

    @property
    def files(self) -> tuple[DatasetSpec, ...]:
        """The data files that a session reads: the datasets, or the prompts of an evaluation that has its own.

        The tasks of an evaluation come after them, and the items of its benchmarks last. So does the archive of the
        adapter that a training begins with.
        """
        if self.evaluation or self.used_job:
            return tuple(file for _, file in self.files_by_pointer)
        return (*self.datasets, *(file for _, file in self._start))

    @property
    def _start(self) -> tuple[tuple[str, DatasetSpec], ...]:
        """The adapter that a training begins with, as one of its files."""
        if self.lora_model is None or self.evaluation is not None:
            return ()
        sha256 = self.lora_model.sha256
        return (("/lora_model_dir", DatasetSpec(path=f"sha256:{sha256}", sha256=sha256)),)

    @property
    def files_by_pointer(self) -> tuple[tuple[str, DatasetSpec], ...]:
        """The data files that a job and its evaluation need, with JSON pointers of their paths."""
        if self.used_job is not None:
            return ()
        own = tuple((f"/datasets/{place}/path", dataset) for place, dataset in enumerate(self.datasets)) + self._start
        asked, pointer = (self.evaluation, "") if self.evaluation is not None else (self.evaluate, "/evaluate")
        if asked is None:
            return own
        if self.evaluation is not None and asked.prompts is not None:
            own = ()
        files = ((f"{pointer}/prompts/path", asked.prompts), (f"{pointer}/tasks/path", asked.tasks))
        items = ((f"{pointer}/benchmarks/{place}", each.items) for place, each in enumerate(asked.benchmarks))
        return (*own, *((place, file) for place, file in files if file is not None), *items)

    @property
    def models(self) -> tuple[str, ...]:
        """The models that a session loads: the base model, and the judge model of an evaluation that has one."""
        judge = self.evaluation.judge if self.evaluation is not None else None
        return (self.base_model,) if judge is None else (self.base_model, judge.model)

    @property
    def evaluation_units(self) -> tuple[Unit, ...]:
        """The units of an evaluation in their order. Empty for a training job."""
        asked = self.evaluation
        if asked is None:
            return ()
        rows = self.eval_rows if asked.prompts is None else asked.prompts.rows or 0
        at_once = prompts_at_once(self.sequence_len, asked.max_new_tokens)
        tasks = asked.tasks.rows or 0 if asked.tasks is not None else 0
        items = [each.rows or 0 for each in asked.benchmarks]
        return units(
            min(rows, asked.max_prompts),
            at_once,
            tasks=tasks,
            measures=asked.measures,
            benchmarks=items,
            judged_at_once=self.judged_at_once if asked.judge is not None else 0,
        )

    @property
    def judged_tokens(self) -> int:
        """About how many tokens a request to the judge model has: a prompt, both answers, and the fixed text."""
        asked = self.evaluation or self.evaluate
        return self.sequence_len + 2 * asked.max_new_tokens + TEXT_TOKENS if asked is not None else 0

    @property
    def judged_at_once(self) -> int:
        """Prompts of one batch of the judge model of an evaluation."""
        return prompts_at_once(self.judged_tokens, MAX_OUTPUT_TOKENS)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole job (first `max_steps`, then `num_epochs`), units of an evaluation, else 1."""
        if self.evaluation is not None:
            return len(self.evaluation_units)
        if self.used_job is not None:
            return 1
        if self.max_steps is not None:
            return self.max_steps
        return max(1, math.ceil(self.train_rows * (self.num_epochs or 0) / self.global_batch_size))

    @property
    def eval_every(self) -> int:
        """Steps between two evaluations. A fixed function of the job, so that a hand-off does not move them."""
        return self.eval_steps or max(1, self.total_steps // 5)
