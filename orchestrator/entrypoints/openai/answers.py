"""Answers in the form of OpenAI's API. Times are whole seconds since the Unix epoch."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict

Seconds = Annotated[int, BeforeValidator(int)]
T = TypeVar("T")


class OpenAIModel(BaseModel):
    """Base class of these answers."""

    model_config = ConfigDict(ser_json_inf_nan="null")


class ErrorBody(OpenAIModel):
    """What went wrong. `param` is the key of the request that is wrong."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(OpenAIModel):
    """An error in OpenAI's form."""

    error: ErrorBody


class ListPage(OpenAIModel, Generic[T]):
    """A page of a list. While `has_more` is true, ask again with `after` set to `last_id`."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, data: list[Any], *, has_more: bool) -> ListPage[T]:
        """The page of these entries, each with its `id`."""
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return cls.model_construct(object="list", data=data, first_id=first, last_id=last, has_more=has_more)


class StoredFile(OpenAIModel):
    """An uploaded file, or a result of a job."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: Seconds
    filename: str
    purpose: Literal["fine-tune", "fine-tune-results"]
    status: Literal["processed"] = "processed"


class DeletedFile(OpenAIModel):
    """A file that was deleted."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class JobError(OpenAIModel):
    """Why a job has failed."""

    code: str
    message: str
    param: str | None = None


class FineTuningJob(OpenAIModel):
    """A fine-tuning job. `fine_tuned_model` is the id by which its adapter is named everywhere."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: Seconds
    finished_at: Seconds | None
    estimated_finish: Seconds | None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    status: Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
    error: JobError | None
    training_file: str
    validation_file: None = None
    result_files: list[str]
    trained_tokens: int | None
    hyperparameters: dict[str, float]
    method: dict[str, Any]
    seed: int
    user_provided_suffix: str | None
    metadata: dict[str, str] | None
    integrations: list[Any] = []


class FineTuningEvent(OpenAIModel):
    """An event of a job."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: Seconds
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message"] = "message"
    data: dict[str, Any]


class FineTuningCheckpoint(OpenAIModel):
    """A checkpoint of a job. A job can be cloned from it."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: Seconds
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, float]
    step_number: int
