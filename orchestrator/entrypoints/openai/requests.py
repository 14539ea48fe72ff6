"""Requests of OpenAI's API for fine-tuning. A key that is not here is refused by its name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from orchestrator.entrypoints.api.requests import RequestModel
from worker.shared.wire import NonBlank

MAX_METADATA = 16
"""Pairs, as in OpenAI's API."""


def _refused(words: str) -> Any:
    """A value that has no counterpart here. Null and an empty list ask for nothing."""

    def check(value: Any) -> Any:
        if value not in (None, [], {}):
            raise ValueError(words)
        return None

    return Annotated[Any, AfterValidator(check)]


def _no_auto(value: Any) -> Any:
    return None if value == "auto" else value


def _number(kind: type, name: str, **limits: Any) -> Any:
    """A number, or `auto` for the default."""
    smallest = {"minimum" if "ge" in limits else "exclusiveMinimum": limits.get("ge", limits.get("gt"))}
    schema = {"anyOf": [{"const": "auto"}, {"type": name, **smallest, "maximum": limits["le"]}, {"type": "null"}]}
    return Annotated[Annotated[kind, Field(**limits)] | None, BeforeValidator(_no_auto), WithJsonSchema(schema)]


def _one_line(text: str) -> str:
    if text != " ".join(text.split()):
        raise ValueError("must be one line without spaces at its ends or several in a row")
    return text


def _key(text: str) -> str:
    if ": " in text or text.endswith(":"):
        raise ValueError("must be a key without a colon at its end or before a space")
    return _one_line(text)


class Hyperparameters(RequestModel):
    """Hyper-parameters of supervised fine-tuning. `auto` is our default."""

    n_epochs: _number(int, "integer", ge=1, le=10_000) = None  # pyright: ignore[reportInvalidTypeForm]
    batch_size: _number(int, "integer", ge=1, le=65_536) = None  # pyright: ignore[reportInvalidTypeForm]
    learning_rate_multiplier: _number(float, "number", gt=0, le=50_000) = None  # pyright: ignore[reportInvalidTypeForm]


class DpoHyperparameters(Hyperparameters):
    """Hyper-parameters of direct preference optimisation."""

    beta: _number(float, "number", gt=0, le=1_000) = None  # pyright: ignore[reportInvalidTypeForm]


class Supervised(RequestModel):
    """Settings of supervised fine-tuning."""

    hyperparameters: Hyperparameters | None = None


class Dpo(RequestModel):
    """Settings of direct preference optimisation."""

    hyperparameters: DpoHyperparameters | None = None


def _known_method(value: Any) -> Any:
    if value not in ("supervised", "dpo"):
        raise ValueError(
            f"{str(value)[:40]!r} has no counterpart; there are supervised and dpo. Of a job file, give further "
            "methods as {'trainhop': {'rl': ...}} in extra_body"
        )
    return value


class Method(RequestModel):
    """The method of training, with its settings under its name."""

    type: Annotated[Literal["supervised", "dpo"], BeforeValidator(_known_method)]
    supervised: Supervised | None = None
    dpo: Dpo | None = None

    @model_validator(mode="after")
    def _of_one_type(self) -> Method:
        other = "dpo" if self.type == "supervised" else "supervised"
        if getattr(self, other) is not None:
            raise ValueError(f"has settings of {other}, and its type is {self.type}")
        return self

    @property
    def hyperparameters(self) -> Hyperparameters | None:
        """Those of the method of this type."""
        settings = self.dpo if self.type == "dpo" else self.supervised
        return settings.hyperparameters if settings is not None else None


Metadata = Annotated[
    dict[
        Annotated[NonBlank, Field(max_length=64), AfterValidator(_key)],
        Annotated[str, Field(max_length=500), AfterValidator(_one_line)],
    ],
    Field(max_length=MAX_METADATA),
]


class FineTuningJobCreate(RequestModel):
    """A fine-tuning job. `trainhop` has further keys of a job file."""

    model: NonBlank
    training_file: Annotated[str, Field(max_length=100)]
    validation_file: _refused(  # pyright: ignore[reportInvalidTypeForm]
        "has no counterpart; validation rows are a share of the training file: give {'trainhop': {'val_set_size': "
        "0.1}} in extra_body"
    ) = None
    hyperparameters: Hyperparameters | None = None
    method: Method | None = None
    suffix: Annotated[NonBlank | None, Field(max_length=64)] = None
    seed: Annotated[int | None, Field(ge=0, lt=2**31)] = None
    metadata: Metadata | None = None
    integrations: _refused("has no counterpart; the server reports metrics itself") = None  # pyright: ignore[reportInvalidTypeForm]
    trainhop: dict[str, Any] = Field(default={}, description="Further keys of a job file.")


class ListQuery(RequestModel):
    """A page of a list. `after` is the id of the last entry of the page before."""

    after: Annotated[str | None, Field(max_length=100)] = None
    limit: Annotated[int, Field(ge=1, le=200)] = 20


class CheckpointQuery(ListQuery):
    """A page of checkpoints."""

    limit: Annotated[int, Field(ge=1, le=200)] = 10


class FileQuery(RequestModel):
    """A page of files. A page has at most 1,000, whatever the limit is."""

    after: Annotated[str | None, Field(max_length=100)] = None
    limit: Annotated[int, Field(ge=1, le=10_000)] = 10_000
    order: Literal["asc", "desc"] = "desc"
    purpose: Literal["fine-tune"] = "fine-tune"
