"""API responses. Times are RFC 3339 in UTC, durations are seconds, sizes are bytes, hashes are lower-case hex."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from orchestrator.domain.accounts import Role
from orchestrator.domain.diagnosis import summary
from orchestrator.domain.lifecycle import CheckpointState, EndReason, JobState, LeaseState
from orchestrator.services import plans

LAST_MOMENT = 253_402_300_799.0
"""The end of the year 9999, the last time that RFC 3339 can represent."""


def _utc(value: Any) -> Any:
    if isinstance(value, (int, float)):
        return datetime.fromtimestamp(min(max(value, 0.0), LAST_MOMENT), UTC)
    return value


Time = Annotated[datetime, BeforeValidator(_utc)]


class ResponseModel(BaseModel):
    """Base class of responses. It reads dataclasses and rows."""

    model_config = ConfigDict(from_attributes=True, extra="ignore", ser_json_inf_nan="null")


T = TypeVar("T")


class Page(ResponseModel, Generic[T]):
    """One page. While `next` is set there may be more: repeat the request with `cursor` set to it."""

    items: list[T]
    next: str | None = None


class Items(ResponseModel, Generic[T]):
    """A complete list."""

    items: list[T]


class Problem(BaseModel):
    """An RFC 9457 problem document. `errors` point into the request."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[Literal["pointer", "detail"], str]] | None = None


class Head(ResponseModel):
    """The checkpoint that the job resumes from."""

    sha256: str
    step: int
    size: int | None
    committed_at: Time | None


class Loss(ResponseModel):
    """Training loss at the first and the newest step."""

    first: float | None
    last: float | None


class WaitingReason(ResponseModel):
    """Why a queued job waits, and until when if that is known."""

    reason: str
    until: Time | None


class LiveSession(ResponseModel):
    """The current session of a job."""

    id: str
    provider: str
    account: str
    phase: str
    step: int
    seconds_left: float
    last_seen_at: Time | None
    state: LeaseState
    detail: str = Field(description="Why it has not started, or why it cannot save. Empty if nothing is wrong.")


class Requests(ResponseModel):
    """Pending requests to a running job."""

    cancel: bool
    pause: bool


class Adapter(ResponseModel):
    """The finished adapter: hash of its weights, hash and size of the zip file."""

    sha256: str
    zip_sha256: str
    bytes: int


StateWord = Literal["queued", "starting", "running", "paused", "succeeded", "failed", "cancelled"]


def _word(state: Any) -> Any:
    return state.word if isinstance(state, JobState) else "starting" if state == JobState.LEASED.value else state


class Job(ResponseModel):
    """A job in a list."""

    id: str
    name: str
    member: str
    state: Annotated[StateWord, BeforeValidator(_word)]
    end_reason: EndReason | None
    message: str
    priority: int
    deadline: Time | None
    created_at: Time
    updated_at: Time
    step: int
    total_steps: int
    head: Head | None
    loss: Loss | None
    seconds_per_step: float | None
    eta_seconds: float | None
    handoffs: int
    steps_repeated: int
    session: LiveSession | None
    requests: Requests
    adapter: Adapter | None
    cloned_from: str | None
    tags: list[str]
    note: str
    first_step: int = Field(description="0, or the step of the checkpoint that a clone started from.")
    waiting: WaitingReason | None = Field(default=None, description="Why it waits, while it is queued.")


class JobInFull(Job):
    """A job with its job file."""

    spec: dict[str, Any]


class SubmittedJob(JobInFull):
    """A job that was just queued. `notes` are what its author should know, as in its plan."""

    notes: list[str] = []


class Session(ResponseModel):
    """One attempt of a job on one machine."""

    id: str
    job: str
    provider: str
    account: str
    state: LeaseState
    outcome: EndReason | None
    detail: str
    cause: str = Field(
        description="The cause that prevented its first step. Empty if it has made one or the cause is unknown."
    )
    image: str
    first_step: int
    last_step: int
    seconds: float
    started_at: Time | None
    ended_at: Time | None
    backend: str | None
    fidelity: str | None
    hardware: dict[str, Any]
    ledger: dict[str, float]
    seconds_per_step: float | None


class Store(ResponseModel):
    """A store of checkpoints. `problem` is an error to fix. `free` is null if it is unlimited or unknown.

    `note` says after a check, or after the store was chosen, what works in another way than usual.
    """

    name: str
    current: bool
    owner: str
    used: int | None
    free: int | None
    problem: str
    note: str = ""


class SessionReading(ResponseModel):
    """One hardware reading of a session's machine."""

    at: Time
    step: int
    reading: dict[str, Any]


class Checkpoint(ResponseModel):
    """One checkpoint. `session` wrote it. `parent` is the checkpoint it continues."""

    sha256: str
    step: int
    parent: str | None
    fence: int
    session: str = Field(validation_alias=AliasChoices("session", "lease_id"))
    size: int
    state: CheckpointState
    created_at: Time


class CheckpointInFull(Checkpoint):
    """A checkpoint with its manifest."""

    manifest: dict[str, Any]


class Metric(ResponseModel):
    """One value at one optimiser step. It is null if it is not a finite number."""

    name: str
    step: int
    value: float | None


class StoredSample(ResponseModel):
    """The model's answer to a prompt at a step."""

    step: int
    prompt: str
    text: str
    at: Time


class Event(ResponseModel):
    """One event of a job. Ids increase over time."""

    id: int
    job: str = Field(validation_alias=AliasChoices("job", "job_id"))
    session: str | None = Field(validation_alias=AliasChoices("session", "lease_id"))
    at: Time
    kind: str
    actor: str
    reason: str
    data: dict[str, Any]


class PlannedPlace(plans.PlannedPlace):
    """The forecast for one account: sessions, seconds and end, or the reason why the job cannot run there.

    `hours` count against the account's quota. `step_s` is the measured step time that the forecast uses.
    """

    obstacle: WaitingReason | None  # pyright: ignore[reportIncompatibleVariableOverride]

    refresh_at: Time | None = None  # pyright: ignore[reportIncompatibleVariableOverride]

    done_at: Time | None = None  # pyright: ignore[reportIncompatibleVariableOverride]


class Plan(plans.Plan):
    """The plan for a job.

    `store_bytes` is the maximum space of its checkpoints, `done_at` the earliest end, `step_s` the step time at the
    fastest account.
    """

    places: list[PlannedPlace]  # pyright: ignore[reportIncompatibleVariableOverride]

    waits_for: WaitingReason | None  # pyright: ignore[reportIncompatibleVariableOverride]

    done_at: Time | None  # pyright: ignore[reportIncompatibleVariableOverride]


class Dataset(ResponseModel):
    """An uploaded file. Use it in a job as `sha256:HEX`. A clean copy has the sha256 of its original as `parent`."""

    sha256: str
    size: int
    rows: int
    type: str = Field(validation_alias=AliasChoices("row_format", "type"))
    file_format: str
    parent: str = ""


class CheckedDataset(Dataset):
    """An uploaded file, its audit, the names of columns that it was read with, and up to 20 keys not used."""

    unused_keys: list[str] = []
    columns: dict[str, Any] = {}
    audit: str


class Upload(Dataset):
    """An uploaded file, its owner, and the result of its `audit` in a few words, or "not audited".

    Members who uploaded the same bytes each have an entry with their own name.
    """

    name: str
    member: str
    created_at: Time
    audit: str


class Notebook(ResponseModel):
    """A notebook for the job's owner to run. `note` tells where it cannot run. Its code works until `expires_at`.

    The code works once. `url` opens the notebook in the editor of the Google Drive that has it.
    """

    job: str
    file_name: str
    expires_at: Time
    url: str | None = None
    note: str
    notebook: dict[str, Any]


class Member(ResponseModel):
    """A member."""

    id: str
    name: str
    role: Role
    created_at: Time


class Me(ResponseModel):
    """The member that the token belongs to."""

    id: str = Field(validation_alias=AliasChoices("member_id", "id"))
    name: str
    role: Role


class Token(ResponseModel):
    """A token without its secret."""

    id: str
    member_id: str
    member: str
    role: Role
    name: str
    created_at: Time
    expires_at: Time | None


class NewToken(Token):
    """A new token. `secret` is returned only once."""

    secret: str


def _in_one_line(image: Any, found: ValidationInfo) -> str:
    return image if isinstance(image, str) else summary(image, str(found.data.get("provider", "")))


class Account(ResponseModel):
    """An account, or a shared pool if `member` is null."""

    id: str
    provider: str
    member_id: str | None
    name: str
    config: dict[str, Any]
    paused: bool
    not_before: Annotated[Time | None, BeforeValidator(lambda at: at or None)]
    note: str
    has_credentials: Annotated[bool, BeforeValidator(bool)] = Field(
        validation_alias=AliasChoices("credentials", "has_credentials")
    )
    consented_at: Time | None
    problem: str
    created_at: Time
    diagnosis: Annotated[str, BeforeValidator(_in_one_line)] = Field(
        validation_alias=AliasChoices("image", "diagnosis"), description="A summary of the checks of its machines."
    )


class CheckedAccount(ResponseModel):
    """The result of a credentials check. `words` names their owner or the error."""

    account: Account
    ok: bool
    words: str
