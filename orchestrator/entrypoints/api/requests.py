"""Request bodies that are not part of the worker protocol."""

from __future__ import annotations

import json
import unicodedata
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from orchestrator.domain.accounts import Role
from orchestrator.domain.audits import StrataKind
from orchestrator.domain.choices import MAX_BUDGET, GainKind
from orchestrator.domain.comparisons import PlanName
from orchestrator.domain.exports import ExportFormat, Onto, WeightType
from orchestrator.domain.trust.audit_estimate import Label
from orchestrator.services.audit_rating import MAX_NOTE, MAX_SOURCE
from orchestrator.services.audits import MAX_SEED
from orchestrator.services.chats import Endpoint
from orchestrator.services.comparisons import MAX_QUESTION, QUESTION
from orchestrator.services.judge_endpoints import MAX_KEY
from orchestrator.services.judgements import BUDGET
from worker.shared import chat
from worker.shared.chat_limits import LEAST_MINUTES, MAX_MINUTES, MINUTES
from worker.shared.evaluation_spec import EvaluationSpec
from worker.shared.hub_names import RepoName
from worker.shared.wire import Count, Sha256

MAX_CONFIG = 16_384


class RequestModel(BaseModel):
    """Base class of request bodies. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


_UNSEEN = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}


def _readable(text: str) -> str:
    if any(unicodedata.category(sign) in _UNSEEN for sign in text):
        raise ValueError("must not contain control or invisible characters")
    return text.strip()


Name = Annotated[
    str,
    Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]*\S[^\x00-\x1f\x7f]*$"),
    AfterValidator(_readable),
]


def _at_most_config(config: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(config)) > MAX_CONFIG:
        raise ValueError(f"must have at most {MAX_CONFIG} characters as JSON")
    return config


Secret = Annotated[SecretStr, Field(max_length=10_000)]
Config = Annotated[
    dict[Annotated[str, Field(max_length=100)], Any], Field(max_length=64), AfterValidator(_at_most_config)
]


class Priority(RequestModel):
    """A priority in the queue. Values above 0 need an admin."""

    priority: Annotated[int, Field(ge=-1000, le=1000)]


class MemberCreate(RequestModel):
    """A member to add."""

    name: Name
    role: Role = Role.MEMBER


class TokenCreate(RequestModel):
    """A token for a member (id or name, default: you). It expires after `days`, at least 1, or never."""

    member: Name | None = None
    name: Name = "cli"
    days: Annotated[float, Field(ge=1, le=36_500)] | None = None


class AccountCreate(RequestModel):
    """An account to connect. `config` depends on the provider. `credentials` are encrypted and never returned."""

    provider: Annotated[str, Field(min_length=1, max_length=32)]
    name: Name | None = None
    owner: Name | None = None
    config: Config = {}
    credentials: Secret | None = None


class AccountUpdate(RequestModel):
    """Changes to an account. Keys of `config` that are not given stay. Keys in `unset` get their defaults again."""

    paused: bool | None = None
    config: Config | None = None
    unset: Annotated[list[Annotated[str, Field(min_length=1, max_length=100)]], Field(max_length=100)] = []
    credentials: Secret | None = None


class StoreUpdate(RequestModel):
    """The store to use. Settings that are not given keep their values.

    `credentials` are encrypted and never returned.
    """

    credentials: Secret | None = None
    config: Config = {}


class EvaluationCreate(EvaluationSpec):
    """An evaluation to start. `checkpoint` is the sha256 of one of the job's checkpoints (default: the newest).

    `temperature` 0 takes the most probable token. `prompts` is an uploaded file with rows as for training, without
    their answers (default: the job's validation rows). `tasks` is an uploaded file of tasks: upload it with the type
    `task`. `benchmarks` are names of benchmarks. `judge` is a model that compares the answers in the same session, by
    its name or as `model` with the name. `accept_findings` are checks that may find training rows among prompts
    and tasks, for example `leak`.
    """

    checkpoint: Sha256 | None = None
    accept_findings: Annotated[tuple[Literal["leak"], ...], Field(max_length=1)] = ()


class ExportCreate(RequestModel):
    """An export to make. `type` is the type of the weights (default: `fp16` where that fits, else `bf16`).

    `onto` says into which form of the base model the adapter is merged: the original one, or the NF4 form on which
    jobs with `adapter: qlora` are trained.
    """

    format: ExportFormat
    type: WeightType | None = None
    onto: Onto = Onto.ORIGINAL


class AuditCreate(RequestModel):
    """An audit to start. Rows are drawn by a hash of `seed` and row (default: a random one, which is kept).

    The sample has the same share of each stratum as the dataset. `max_wrong` is the largest share of wrong rows that
    passes.
    """

    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    strata: StrataKind = StrataKind.LENGTH
    max_wrong: Annotated[float, Field(ge=0.001, le=0.9)] | None = None


class AuditLabel(RequestModel):
    """A label of a row, with the address of a source and a note. `unit` is that of the row that you saw."""

    unit: Annotated[str, Field(max_length=40)]
    label: Label
    source: Annotated[str, Field(max_length=MAX_SOURCE)] = ""
    note: Annotated[str, Field(max_length=MAX_NOTE)] = ""


Question = Annotated[
    str,
    Field(min_length=1, max_length=MAX_QUESTION, pattern=r"^[^\x00-\x1f\x7f]*\S[^\x00-\x1f\x7f]*$"),
    AfterValidator(_readable),
]
Margin = Annotated[
    float, Field(ge=0.01, le=0.3, description="The largest loss of the mean score that is not worse, from 0 to 1.")
]


class ComparisonCreate(RequestModel):
    """A blind comparison to start. Raters see the `question`.

    The `standard` plan looks after 20, 40, 80 and 160 decisive prompts, the `small` one after 16, 32 and 64. With a
    `margin`, the comparison also tests whether the trained model is not worse by more than it. With a `gain` as well, a
    model that is not worse is promoted if it solves more of the evaluation's tasks.
    """

    question: Question = QUESTION
    plan: PlanName = PlanName.STANDARD
    margin: Margin | None = None
    gain: GainKind | None = None


class ComparisonUpdate(RequestModel):
    """Changes to a comparison without votes. Settings that are not given stay."""

    question: Question | None = None
    plan: PlanName | None = None
    margin: Margin | None = None
    gain: GainKind | None = None


class RaterCreate(RequestModel):
    """A rater to add. They need no account."""

    name: Name


JudgeUrl = Annotated[
    str, Field(min_length=1, max_length=1_000, description="For example https://api.example.org/v1, without the key.")
]
JudgeModel = Annotated[
    str, Field(min_length=1, max_length=200, description="The model's name there."), AfterValidator(_readable)
]
JudgeKey = Annotated[SecretStr, Field(max_length=MAX_KEY)]
Budget = Annotated[int, Field(ge=1, le=MAX_BUDGET, description="Tokens of all requests and answers.")]


class JudgeEndpointCreate(RequestModel):
    """An OpenAI-compatible chat endpoint to add. The key is encrypted and never returned.

    With `consent` you agree that prompts and answers of your evaluations are sent there.
    """

    name: Name
    url: JudgeUrl
    model: JudgeModel
    key: JudgeKey = SecretStr("")
    consent: bool = False


class JudgeEndpointUpdate(RequestModel):
    """A new key for an endpoint."""

    key: JudgeKey


class ChatEndpoint(RequestModel):
    """An OpenAI-compatible address, and what the models are called there. The key is not stored.

    `lora` is llama-server's number of the adapter. It is switched off for the base model.
    """

    url: JudgeUrl
    model: Annotated[str, Field(max_length=200)] = ""
    base_model: Annotated[str, Field(max_length=200)] = ""
    lora: Annotated[int, Field(ge=0, le=99)] | None = None
    key: JudgeKey = SecretStr("")


class ChatCreate(chat.Question):
    """A question with the turns before it. Without `endpoint` the server's own computer answers.

    With `on_machine` the job's session on a machine answers.
    """

    endpoint: ChatEndpoint | None = None
    on_machine: bool = False

    def as_question(self) -> chat.Question:
        """The question alone."""
        return chat.Question.model_validate(self.model_dump(exclude={"endpoint", "on_machine"}))

    def as_endpoint(self) -> Endpoint | None:
        """The address with its key."""
        if self.endpoint is None:
            return None
        return Endpoint(**self.endpoint.model_dump(exclude={"key"}), key=self.endpoint.key.get_secret_value())


class ChatSessionCreate(RequestModel):
    """A session on a machine for chats. Its start counts toward its minutes."""

    minutes: Annotated[int, Field(ge=LEAST_MINUTES, le=MAX_MINUTES)] = MINUTES


class JudgementCreate(RequestModel):
    """A judgement to start, by one of your endpoints (id or name)."""

    endpoint: Name
    max_tokens: Budget = BUDGET


class JudgementResume(RequestModel):
    """A judgement to resume, with its old budget or with another one."""

    max_tokens: Budget | None = None


class PushCreate(RequestModel):
    """A push to the Hugging Face hub. Without `repo`, to that of the job's last push or of its file.

    `public` allows a public repository and makes a new one public. `replace` allows one with other files.
    """

    repo: RepoName | None = None
    public: bool = False
    replace: bool = False


MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._\-]{0,99}$"
"""Names of models, which are part of addresses. A browser reads it too, and wants the dash escaped."""
JOB_ID = r"^[0-9a-z-]{1,64}$"
JobName = Annotated[str, Field(pattern=JOB_ID, description="The job's id.")]
After = Annotated[
    int | None, Field(ge=0, lt=2**31, description="The number of moves that you have seen. Others come first.")
]


class CandidateCreate(RequestModel):
    """A finished job. Its adapter becomes a candidate."""

    job: JobName


class Promotion(RequestModel):
    """A job to promote. `force` promotes it against the verdict and needs an admin."""

    job: JobName
    force: bool = False
    after: After = None


class Rollback(RequestModel):
    """A rollback to the candidate that was promoted before."""

    after: After = None


class GrantsCreate(BaseModel):
    """A request for more grants of a lease."""

    fence: Count
    kind: Literal["checkpoint", "adapter", "answers", "export"]
    count: Annotated[int, Field(ge=1, le=16)] = 1
    through_server: Annotated[
        bool, Field(description="Upload to this server, because the store refuses the addresses of its grants.")
    ] = False
