"""What the API answers. Times are RFC 3339 in UTC, durations seconds, sizes bytes, hashes lower-case hex."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from orchestrator.domain.diagnosis import summary
from orchestrator.domain.lifecycle import CheckpointState, EndReason, JobState, LeaseState
from orchestrator.domain.model import Role

LAST_MOMENT = 253_402_300_799.0
"""The end of the year 9999, beyond which there is no RFC 3339."""


def _utc(value: Any) -> Any:
    if isinstance(value, (int, float)):
        return datetime.fromtimestamp(min(max(value, 0.0), LAST_MOMENT), UTC)
    return value


Time = Annotated[datetime, BeforeValidator(_utc)]


class ResponseModel(BaseModel):
    """Base of every answer; reads dataclasses as well as rows."""

    model_config = ConfigDict(from_attributes=True, extra="ignore", ser_json_inf_nan="null")


T = TypeVar("T")


class Page(ResponseModel, Generic[T]):
    """One page. As long as `next` is set there may be more: ask again with `cursor` set to it."""

    items: list[T]
    next: str | None = None


class Items(ResponseModel, Generic[T]):
    """A list that comes whole."""

    items: list[T]


class Problem(BaseModel):
    """An RFC 9457 problem document; `errors` point into the request."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[Literal["pointer", "detail"], str]] | None = None


class Head(ResponseModel):
    """The checkpoint from which the job goes on."""

    sha256: str
    step: int
    size: int | None
    committed_at: Time | None


class Loss(ResponseModel):
    """Training loss at the first and the newest reported step."""

    first: float | None
    last: float | None


class Waiting(ResponseModel):
    """Why a queued job does not start, and until when if that is known."""

    reason: str
    until: Time | None


class LiveSession(ResponseModel):
    """The session that a job is on now."""

    id: str
    provider: str
    account: str
    phase: str
    step: int
    seconds_left: float
    last_seen_at: Time | None
    state: LeaseState


class Requests(ResponseModel):
    """What was asked of a running job and has not happened yet."""

    cancel: bool
    pause: bool


class Adapter(ResponseModel):
    """The finished adapter: hash of its weights, hash and size of the zip."""

    sha256: str
    zip_sha256: str
    bytes: int


class Job(ResponseModel):
    """A job in a list."""

    id: str
    name: str
    member: str
    state: JobState
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
    first_step: int = Field(description="0, or the step of the checkpoint of `cloned_from` that the job began with.")


class JobInFull(Job):
    """A job with its file and, until a session of it starts, what it waits for."""

    spec: dict[str, Any]
    waiting: Waiting | None = None


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
        description="What kept it from its first step, as one word; empty if nothing did, or nobody knows."
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
    """Where checkpoints lie; `problem` says what a person must put right. No `free` is no limit, or not known."""

    name: str
    current: bool
    owner: str
    used: int | None
    free: int | None
    problem: str


class Reading(ResponseModel):
    """One look at a session's machine."""

    at: Time
    step: int
    reading: dict[str, Any]


class Checkpoint(ResponseModel):
    """One checkpoint; `session` wrote it, `parent` is the head it continues."""

    sha256: str
    step: int
    parent: str | None
    fence: int
    session: str = Field(validation_alias=AliasChoices("session", "lease_id"))
    size: int
    state: CheckpointState
    created_at: Time


class CheckpointInFull(Checkpoint):
    """A checkpoint with what it says of itself."""

    manifest: dict[str, Any]


class Metric(ResponseModel):
    """One value at one optimiser step; null where it is not a finite number."""

    name: str
    step: int
    value: float | None


class Sample(ResponseModel):
    """What the model answered to a prompt at a step."""

    step: int
    prompt: str
    text: str
    at: Time


class Event(ResponseModel):
    """One thing that happened to a job. Ids only grow."""

    id: int
    job: str = Field(validation_alias=AliasChoices("job", "job_id"))
    session: str | None = Field(validation_alias=AliasChoices("session", "lease_id"))
    at: Time
    kind: str
    actor: str
    reason: str
    data: dict[str, Any]


class PlannedPlace(ResponseModel):
    """Sessions, seconds and the end at one account, or what stands in the way; `hours` count against its quota.

    They are told from `step_s`, the seconds that a step of such a job took on such a machine.
    """

    account: str
    provider: str
    sessions: int | None
    seconds: float | None
    obstacle: Waiting | None
    memory_bytes: int = 0
    step_s: float | None = None
    hours: float | None = None
    hours_left: float | None = None
    hours_total: float | None = None
    refresh_at: Time | None = None
    done_at: Time | None = None


class Plan(ResponseModel):
    """What would happen to a job.

    `store_bytes` is the space its checkpoints take at most, `done_at` the earliest end, `step_s` what a step takes at the
    quickest place.
    """

    steps: int
    train_rows: int
    gpu_bytes: int
    host_bytes: int
    step_s: float | None
    basis: str
    places: list[PlannedPlace]
    waits_for: Waiting | None
    store: str
    store_bytes: int | None
    done_at: Time | None
    late_s: float | None = None


class Dataset(ResponseModel):
    """An uploaded file; name it in a job as `sha256:HEX`."""

    sha256: str
    size: int
    rows: int
    type: str = Field(validation_alias=AliasChoices("row_format", "type"))
    file_format: str


class Upload(Dataset):
    """An uploaded file and who brought it; those who brought the same bytes each have it under a name of their own."""

    name: str
    member: str
    created_at: Time


class Notebook(ResponseModel):
    """A notebook for the job's owner to run; `note` says where it cannot run. Its code works once, until `expires_at`.

    `url` opens it in Colab, where it was put into a Google Drive.
    """

    job: str
    file_name: str
    expires_at: Time
    url: str | None = None
    note: str
    notebook: dict[str, Any]


class Member(ResponseModel):
    """A person."""

    id: str
    name: str
    role: Role
    created_at: Time


class Me(ResponseModel):
    """Who the token belongs to."""

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
    """A fresh token; `secret` is shown this once."""

    secret: str


def _in_one_line(image: Any, found: ValidationInfo) -> str:
    return image if isinstance(image, str) else summary(image, str(found.data.get("provider", "")))


class Account(ResponseModel):
    """An account, or (without a member) a pool of machines."""

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
        validation_alias=AliasChoices("image", "diagnosis"), description="What checks of its machines found."
    )


class CheckedAccount(ResponseModel):
    """An account whose credentials were tried; `words` say who they belong to, or what is wrong."""

    account: Account
    ok: bool
    words: str
