"""The wire between server and worker: what is asked, reported, offered and granted.

Every model here is JSON on the wire. Readers ignore fields they do not know, new fields are optional,
and a different major version is refused in words, so that a worker of last month still talks to a server of today.
Sizes are bytes, durations are seconds, times are seconds since the Unix epoch in UTC, hashes are lower-case hex.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from worker.shared.signed_lines import LINE_MARK, signed

PROTOCOL_VERSION = 1
"""Raised when an old worker could misread a new server; compared in `start` and in every manifest."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    if any("\ud800" <= sign <= "\udfff" for sign in text):  # neither a database nor a tokenizer takes it
        raise ValueError("holds half a character")
    return text.strip()


NonBlank = Annotated[str, AfterValidator(_not_blank)]

Text = Annotated[str, AfterValidator(lambda text: text.replace("\x00", "\ufffd"))]
"""What a machine says in words: a NUL, which not every database keeps, becomes a replacement character."""

Count = Annotated[int, Field(ge=0, lt=2**31)]
Bytes = Annotated[int, Field(ge=0, lt=2**63)]


class Wire(BaseModel):
    """Base of everything sent between server and worker: immutable, unknown fields ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")


class _Written(BaseModel):
    """Base of everything a person writes: unknown keys are refused (`worker.shared.spec_errors` names the nearest known one)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# --- the job file -----------------------------------------------------------------------------------------


class RowFormat(StrEnum):
    """How one row of a dataset is read; `auto` decides from the first row's keys."""

    AUTO = "auto"
    MESSAGES = "messages"
    PROMPT_COMPLETION = "prompt_completion"
    TEXT = "text"
    ALPACA = "alpaca"
    SHAREGPT = "sharegpt"


class FileFormat(StrEnum):
    """The container a dataset file comes in."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


class DatasetSpec(_Written):
    """One dataset of a job. `path` is `sha256:HEX` (an upload), a hub id `org/name[@revision]`, or an allowed folder's file.

    `sha256`, `file_format` and `rows` are filled in by the server at submit and never change afterwards.
    """

    path: NonBlank
    type: RowFormat = RowFormat.AUTO
    split: NonBlank = "train"
    sha256: Sha256 | None = None
    file_format: FileFormat | None = None
    rows: Annotated[int, Field(ge=1)] | None = None


class CheckpointSpec(_Written):
    """How often to save and how many checkpoints to keep."""

    max_interval_s: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    keep: Annotated[int, Field(ge=1, le=100)] = 2


class PlacementSpec(_Written):
    """Where the job may run; empty lists mean anywhere its owner may run."""

    providers: tuple[NonBlank, ...] = ()
    accounts: tuple[NonBlank, ...] = ()
    max_session_s: Annotated[float, Field(ge=1, le=1e9)] | None = None


class JobSpec(_Written):
    """A fine-tuning job, with axolotl's names where it has them.

    `global_batch_size` and `max_steps` are part of the job: a machine may choose its micro-batch, never their product.
    """

    name: Annotated[str, Field(max_length=200), AfterValidator(_not_blank)] = "untitled"
    base_model: NonBlank
    datasets: Annotated[tuple[DatasetSpec, ...], Field(min_length=1, max_length=16)]
    backend: Literal["auto", "hf", "unsloth"] = "auto"

    adapter: Literal["lora", "qlora"] = "lora"
    lora_r: Annotated[int, Field(ge=1, le=1024)] = 16
    lora_alpha: Annotated[float, Field(gt=0, le=4096)] = 32
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    lora_target_modules: Annotated[tuple[NonBlank, ...], Field(min_length=1)] | Literal["all-linear"] = "all-linear"

    sequence_len: Annotated[int, Field(ge=8, le=1_048_576)] = 1024
    global_batch_size: Annotated[int, Field(ge=1, le=65_536)] = 8
    micro_batch_size: Annotated[int, Field(ge=1, le=65_536)] | None = None
    num_epochs: Annotated[float, Field(gt=0, le=10_000)] | None = None
    max_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 2e-4
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    optimizer: Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit"] = "adamw_torch"
    max_grad_norm: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    val_set_size: Annotated[float, Field(ge=0, lt=1)] = 0.0
    train_on_inputs: bool = False
    eval_steps: Annotated[int, Field(ge=1)] | None = None
    sample_prompts: Annotated[tuple[NonBlank, ...], Field(max_length=16)] = ()
    sample_max_tokens: Annotated[int, Field(ge=1, le=1024)] = 48

    checkpoint: CheckpointSpec = CheckpointSpec()
    placement: PlacementSpec = PlacementSpec()
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    deadline: float | None = None

    @field_validator("deadline", mode="before")
    @classmethod
    def _deadline_in_epoch_seconds(cls, value: Any) -> Any:
        """An ISO 8601 time with a zone (or a YAML timestamp) becomes epoch seconds."""
        from datetime import date, datetime  # only a job with a deadline needs it

        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime) and value.tzinfo is not None:
            return value.timestamp()
        if isinstance(value, date):  # a day alone could mean its beginning as well as its end
            words = "a deadline needs a time and its zone, for example 2026-12-01T18:00:00+01:00"
            raise ValueError(words)  # noqa: TRY004  pydantic passes only this one on
        return value

    @model_validator(mode="after")
    def _one_length(self) -> JobSpec:
        if self.num_epochs is None and self.max_steps is None:
            raise ValueError("one of num_epochs and max_steps is needed")
        if self.micro_batch_size is not None and self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} does not divide global_batch_size {self.global_batch_size}"
            )
        return self

    @property
    def rows(self) -> int:
        """Rows of all datasets together; known once the server has resolved them."""
        return sum(d.rows or 0 for d in self.datasets)

    @property
    def eval_rows(self) -> int:
        """Rows held out for the eval loss, taken off by `seed` before anything else."""
        return min(self.rows - 1, math.ceil(self.rows * self.val_set_size)) if self.val_set_size else 0

    @property
    def train_rows(self) -> int:
        """Rows of one epoch."""
        return self.rows - self.eval_rows

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole job; `max_steps` where both it and `num_epochs` are given."""
        if self.max_steps is not None:
            return self.max_steps
        return max(1, math.ceil(self.train_rows * (self.num_epochs or 0) / self.global_batch_size))

    @property
    def eval_every(self) -> int:
        """Steps between two evaluations; a fixed function of the job so that a cut does not move them."""
        return self.eval_steps or max(1, self.total_steps // 5)


# --- what must be equal for a run to go on ---------------------------------------------------------------


class Recipe(Wire):
    """Everything about a run that may not differ between two of its sessions.

    The server fills what the job file says; the worker adds what only loading the model tells (`None` on the server).
    """

    base_model: str
    adapter: str
    lora_r: int
    lora_alpha: float
    lora_dropout: float
    lora_target_modules: tuple[str, ...] | str
    sequence_len: int
    global_batch_size: int
    max_steps: int
    learning_rate: float
    lr_scheduler: str
    warmup_ratio: float
    optimizer: str
    max_grad_norm: float
    weight_decay: float
    seed: int
    train_on_inputs: bool
    val_set_size: float
    dataset_sha256: tuple[str, ...]
    train_rows: int

    base_sha256: str | None = None
    tokenizer_sha256: str | None = None
    parameters_sha256: str | None = None
    trainable_dtype: str | None = None

    @classmethod
    def of(cls, spec: JobSpec) -> Recipe:
        """The recipe as the resolved job file states it."""
        facts: dict[str, Any] = {name: getattr(spec, name) for name in cls.model_fields if name in JobSpec.model_fields}
        facts["max_steps"] = spec.total_steps
        facts["train_rows"] = spec.train_rows
        facts["dataset_sha256"] = tuple(d.sha256 or "" for d in spec.datasets)
        return cls(**facts)

    def differences(self, other: Recipe) -> list[tuple[str, Any, Any]]:
        """`(field, mine, theirs)` for each field both sides know and disagree on."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in type(self).model_fields)
        return [(n, a, b) for n, a, b in pairs if a is not None and b is not None and a != b]


# --- machines --------------------------------------------------------------------------------------------


class Hardware(Wire):
    """The machine a worker really got, probed rather than believed."""

    device: Literal["cpu", "cuda"] = "cpu"
    name: str = ""
    count: int = 1
    memory_bytes: int = 0
    compute_capability: tuple[int, int] | None = None
    cpu_count: int = 1
    ram_bytes: int = 0
    hostname: str = ""
    trouble: str = ""
    """Why a GPU that is there cannot be used; empty where there is none or it works."""


class Reading(Wire):
    """One look at the machine while it works."""

    cpu_percent: float | None = None
    rss_bytes: int | None = None
    ram_used_bytes: int | None = None
    disk_free_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    gpu_percent: float | None = None


# --- grants ----------------------------------------------------------------------------------------------


class GrantKind(StrEnum):
    """What the granted file is for."""

    CHECKPOINT = "checkpoint"
    ADAPTER = "adapter"
    DATASET = "dataset"
    MODEL = "model"


class Grant(Wire):
    """Permission to read or write exactly one file, by path (same machine) or by URL with headers.

    A `resumable` URL is an upload session (see `worker.shared.resumable_upload`), any other takes one plain request.
    """

    key: str
    kind: GrantKind
    path: str | None = None
    url: str | None = None
    headers: dict[str, str] = {}
    resumable: bool = False
    sha256: Sha256 | None = None
    size: int | None = None


# --- the checkpoint's manifest ---------------------------------------------------------------------------


class Fidelity(StrEnum):
    """How close a resumed run is to the unbroken one; nothing less than these is ever continued."""

    EXACT = "exact"
    STATE_EXACT = "state-exact"


class Probe(Wire):
    """Loss of a fixed little batch at the saved step; recomputed after every restore."""

    tokens_sha256: Sha256
    loss: float


class Manifest(Wire):
    """What a checkpoint says of itself; kept as JSON in the `.safetensors` header."""

    protocol: int = PROTOCOL_VERSION
    job: Text
    fence: Count
    step: Count
    parent: Sha256 | None = None
    recipe: Recipe
    epoch: int
    index: int
    samples_seen: int
    wall_seconds: float
    backend: str
    precision: str
    micro_batch_size: int
    world_size: int = 1
    hardware: Hardware
    versions: dict[str, str]
    probe: Probe | None = None
    state: dict[str, Any]


# --- start -----------------------------------------------------------------------------------------------


class Ticket(Wire):
    """What a launched process is handed: where to call, for which lease, with which token.

    `budget_s` is the session's wall-clock time. `assignment` is set where the machine cannot reach the server and has to
    begin without asking.
    """

    lease: str
    token: str
    budget_s: float
    fence: Count | None = None
    server_url: str | None = None
    assignment: Assignment | None = None


class StartRequest(Wire):
    """First call of a worker. `nonce` is made once per process, so that a repeated call is answered alike."""

    protocol: int
    nonce: Annotated[Text, Field(min_length=1, max_length=64)]
    hardware: Hardware
    versions: dict[str, str] = {}
    image: Annotated[Text, Field(max_length=64)] = ""
    """Which image the machine runs: packages that come with it change when this does."""


class Origin(Wire):
    """Whose checkpoint it is that a clone begins with."""

    job: str
    fence: int
    step: int


class Assignment(Wire):
    """Everything a worker needs to go on with a job; `origin` where what it resumes is another job's checkpoint.

    `keep_dir` is a folder whose files the provider hands over when the session ends, for machines that cannot call.
    """

    protocol: int = PROTOCOL_VERSION
    job: str
    lease: str
    fence: int
    spec: JobSpec
    seconds_left: float
    report_every_s: float = 15.0
    mtbf_s: float = 21_600.0
    datasets: tuple[Grant, ...]
    resume: Grant | None = None
    resume_step: int = 0
    origin: Origin | None = None
    uploads: tuple[Grant, ...] = ()
    trust_remote_code: bool = False
    keep_dir: str | None = None
    model: tuple[Grant, ...] = ()
    """The files of a gated or private base model; empty where the machine fetches the model itself."""


# --- what a worker says ----------------------------------------------------------------------------------


class Phase(StrEnum):
    """What a session spends its time on; also the rows of the goodput ledger."""

    BOOT = "boot"
    DOWNLOAD = "download"
    LOAD = "load"
    RESTORE = "restore"
    TRAIN = "train"
    SAVE = "save"
    EVAL = "eval"
    EXPORT = "export"
    WAIT = "wait"


class MetricRow(Wire):
    """Named values at one optimiser step (the state after `step` updates)."""

    step: Count
    values: dict[Annotated[Text, Field(max_length=64)], float]


class Sample(Wire):
    """What the model answers to one of the job's `sample_prompts` at a step."""

    step: Count
    prompt: Text
    text: Text


class _Said(Wire):
    lease: str
    fence: Count
    seq: Count

    def as_line(self) -> str:
        """The message as one line of JSON."""
        return self.model_dump_json()


class Started(_Said):
    """First word of a worker that cannot call: what `StartRequest` says, over a wire that only goes one way."""

    kind: Literal["started"] = "started"
    request: StartRequest


class Report(_Said):
    """Progress, sent every `report_every_s`; extends the lease."""

    kind: Literal["report"] = "report"
    step: Count
    phase: Phase
    metrics: tuple[MetricRow, ...] = ()
    samples: tuple[Sample, ...] = ()
    reading: Reading | None = None
    ledger: dict[Phase, float] = {}
    seconds_per_step: float | None = None
    seconds_left: float | None = None
    fidelity: Fidelity | None = None
    backend: Annotated[Text, Field(max_length=32)] | None = None

    def as_line(self) -> str:
        """Without what has its default value: these come by the thousand."""
        return '{"kind":"report",' + self.model_dump_json(exclude_defaults=True).removeprefix("{")


def merged(reports: Sequence[Report]) -> Report:
    """Several reports as one: the newest state with everybody's metrics and samples."""
    newest = reports[-1]
    return newest.model_copy(
        update={
            "metrics": tuple(row for r in reports for row in r.metrics),
            "samples": tuple(sample for r in reports for sample in r.samples),
        }
    )


class Offer(_Said):
    """A written checkpoint: 'it lies under this grant and hashes to this; make it the head'."""

    kind: Literal["offer"] = "offer"
    key: Annotated[Text, Field(max_length=255)]
    sha256: Sha256
    size: Bytes
    manifest: Manifest


Cause = Annotated[Text, Field(max_length=32)]
"""What kept a session from its first step, as one word (`worker.shared.causes`); empty for any other end."""


class Release(_Said):
    """A goodbye before the job is done; frees the job at once. `head` is the newest checkpoint that was offered."""

    kind: Literal["release"] = "release"
    step: Count
    reason: Literal["deadline", "drained", "paused", "cancelled", "unfit"]
    detail: Text = ""
    cause: Cause = ""
    head: Sha256 | None = None
    ledger: dict[Phase, float] = {}


class Failure(Wire):
    """Why a session could not go on. `permanent` means another machine would fail alike.

    `bad_checkpoint` names the checkpoint that did not load; the server reads it back itself before it believes that.
    """

    message: Text
    permanent: bool
    detail: Text = ""
    cause: Cause = ""
    bad_checkpoint: Sha256 | None = None


class ExportedAdapter(Wire):
    """The PEFT folder as one zip under a grant; `adapter_sha256` is that of its `adapter_model.safetensors`."""

    key: Annotated[Text, Field(max_length=255)]
    sha256: Sha256
    size: Bytes
    adapter_sha256: Sha256


class Finish(_Said):
    """The job's last word from this session: done with an adapter, or failed with a reason. `head` as in `Release`."""

    kind: Literal["finish"] = "finish"
    step: Count
    adapter: ExportedAdapter | None = None
    failure: Failure | None = None
    head: Sha256 | None = None
    ledger: dict[Phase, float] = {}


Message = Annotated[Started | Report | Offer | Release | Finish, Field(discriminator="kind")]


def sign_line(token: str, message: str) -> str:
    """A message as one line of a session's output; see `worker.shared.signed_lines`."""
    return signed(token, message)


def signed_message(token: str, line: str) -> str | None:
    """The JSON of a line that whoever holds this lease's token wrote whole; None for all other output.

    What another writer left on the same line before the mark does not matter.
    """
    _, mark, rest = line.strip().partition(LINE_MARK + " ")
    signature, _, message = rest.partition(" ")
    if not mark:
        return None
    wanted = hmac.new(token.encode(), message.encode(), hashlib.sha256).hexdigest()
    return message if hmac.compare_digest(wanted.encode(), signature.encode()) else None


# --- what the server answers -----------------------------------------------------------------------------


class Action(StrEnum):
    """What a worker does next: go on, hand off at the next step's end, or stop where it stands."""

    CONTINUE = "continue"
    DRAIN = "drain"
    ABORT = "abort"


class Directive(Wire):
    """The answer to every report."""

    action: Action
    reason: str = ""


class OfferReply(Wire):
    """Whether the offered checkpoint became the job's head; `refusal` says why not."""

    committed: bool
    refusal: str = ""


Ticket.model_rebuild()
