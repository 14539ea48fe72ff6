"""API responses of evaluations. Shares are from 0 to 1, losses are nats per token."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from orchestrator.domain.lifecycle import JobState
from orchestrator.entrypoints.api.responses import ResponseModel, StateWord, Time


class OfArms(ResponseModel):
    """A value of the base model, and that of the adapter."""

    base: float
    adapter: float


class Rise(ResponseModel):
    """A mean difference with its 95 % interval."""

    value: float
    low: float
    high: float


class ForgettingResult(ResponseModel):
    """The rise of the loss on general text, from the base model to the adapter."""

    passages: int
    rise: Rise
    harm: Literal["none", "warning", "veto"]


class OwnLoss(OfArms):
    """The mean loss per token on the trained tokens of the asked rows."""

    rows: int
    tokens: int


class Similarity(ResponseModel):
    """How much the answers resemble the answers in the rows. Training on faulty rows raises these numbers too.

    chrF and BLEU are from 0 to 100, over all answers. ROUGE-L is from 0 to 1, the mean of the answers. `settings` are
    the signatures of sacrebleu.
    """

    rows: Annotated[int, Field(description="Rows with an answer of their own.")]
    own_loss: OwnLoss | None
    chrf: OfArms
    bleu: OfArms
    rouge_l: OfArms
    settings: dict[str, str]


class TaskScores(ResponseModel):
    """Prompts with a check of the answer by a program, and how many answers pass.

    `only_base` and `only_adapter` are the lines in the file of the prompts that only one model passes. `difference` is
    the share of the adapter less that of the base model. `p` is that of McNemar's exact test.
    """

    prompts: int
    base: int
    adapter: int
    only_base: list[int]
    only_adapter: list[int]
    difference: Rise
    p: float


class Refused(ResponseModel):
    """Harmless fixed prompts, and how many of them each model refuses."""

    prompts: int
    base: int
    adapter: int


class OwnTasks(ResponseModel):
    """The tasks of the evaluation's file. `scores` is null if their checks took too long, and `problem` says so.

    `unasked` counts tasks with prompts that are too long.
    """

    scores: TaskScores | None
    unasked: int
    truncated: OfArms
    problem: str


class BenchmarkScores(ResponseModel):
    """The share of right answers of each model with its 95 % interval, and the items that only one of them gets right.

    `difference` is the share of the adapter less that of the base model. `p` is that of McNemar's exact test.
    """

    base: Rise
    adapter: Rise
    only_base: int
    only_adapter: int
    difference: Rise
    p: float


class BenchmarkResult(ResponseModel):
    """A benchmark: how many of its items both models have answered, and what came of it.

    `unasked` items are too long for the model. `metric` is what `harness` calls the measure. `chat`: with the model's
    chat template. `scores` is null if every item is too long.
    """

    name: str
    title: str
    metric: str
    items: int
    unasked: int
    harness: str
    chat: bool
    scores: BenchmarkScores | None


class AuditedData(ResponseModel):
    """What an audit says of a data file that the adapter was trained on."""

    sha256: str
    words: str


class EvaluationReport(ResponseModel):
    """What the answers and losses say.

    `identical` counts prompts with equal answers. Shares are of answers that were cut at the token limit, that refuse,
    that repeat themselves, and that have control tokens or role names in them.
    """

    prompts: int
    truncated: OfArms
    tokens: Annotated[OfArms, Field(description="Mean tokens of an answer.")]
    identical: int
    forgetting: ForgettingResult | None
    refusals: OfArms
    repetition: OfArms
    template_leaks: OfArms
    instructions: Annotated[TaskScores | None, Field(description="The fixed prompts that have a check.")] = None
    harmless: Refused | None = None
    fixed_sha256: Annotated[str | None, Field(description="The sha256 of the file of fixed prompts.")] = None
    tasks: OwnTasks | None = None
    benchmarks: Annotated[
        list[BenchmarkResult], Field(default_factory=list, description="In the order of the job file.")
    ]
    similarity: Annotated[Similarity | None, Field(description="Null for an older evaluation.")] = None
    vetoes: list[str]
    warnings: list[str]


class Evaluation(ResponseModel):
    """The evaluation of a checkpoint. `id` is the evaluation's own job, `job` the evaluated one.

    `adapter_sha256` is set if the checkpoint is that of the job's adapter file. `audits` are of the training data.
    The sha256 of the answers, the report and the time of its end are null until it is done.
    """

    id: str
    job: str
    state: Annotated[StateWord, BeforeValidator(lambda state: JobState(state).word)]
    checkpoint_sha256: str
    adapter_sha256: str | None
    settings: dict[str, Any]
    created_at: Time
    answers_sha256: str | None
    report: EvaluationReport | None
    audits: list[AuditedData]
    finished_at: Time | None
