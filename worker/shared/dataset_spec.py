"""A dataset in a job file."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from worker.shared.wire import NonBlank, Sha256, Written


class RowFormat(StrEnum):
    """The row format of a dataset. `auto` detects it from the first row's keys. No job is trained on a `task`.

    `worker.shared.methods` says which formats a training method takes.
    """

    AUTO = "auto"
    MESSAGES = "messages"
    PROMPT_COMPLETION = "prompt_completion"
    TEXT = "text"
    ALPACA = "alpaca"
    SHAREGPT = "sharegpt"
    TASK = "task"
    PREFERENCE = "preference"
    UNPAIRED_PREFERENCE = "unpaired_preference"


class FileFormat(StrEnum):
    """The file format of a dataset."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


Role = Literal["system", "developer", "user", "human", "assistant", "gpt", "chatgpt", "model", "tool", "observation"]
"""A role of a turn, with the names of both kinds of conversations."""
TrainedEnds = Literal["turn", "all", "last"]
ANSWERS: tuple[Role, ...] = ("assistant",)


class TaughtTurns(Written):
    """Which turns of conversations are trained on, with the key names of axolotl and LLaMA-Factory (`mask_history`).

    Left out where they are not set, because older workers refuse the keys.
    """

    roles_to_train: Annotated[tuple[Role, ...], Field(min_length=1, max_length=10)] = Field(
        default=ANSWERS, exclude_if=lambda roles: roles == ANSWERS
    )
    mask_history: bool = Field(default=False, exclude_if=lambda asked: not asked)
    train_on_eos: TrainedEnds = Field(default="turn", exclude_if=lambda ends: ends == "turn")


MAX_REPEATS = 1_000
Column = Annotated[NonBlank | None, Field(max_length=200, exclude_if=lambda name: name is None)]
Names = Annotated[dict[NonBlank, NonBlank], Field(max_length=16, exclude_if=lambda names: not names)]
Roles = Annotated[
    dict[NonBlank, Annotated[tuple[NonBlank, ...], Field(max_length=16)] | NonBlank],
    Field(max_length=8, exclude_if=lambda roles: not roles),
]

_OF_CHATS = ("field_messages", "message_property_mappings", "roles")
_OF_ALPACA = ("field_instruction", "field_input", "field_output")
_OF_TEXTS = ("field",)
_BY_FORMAT = {RowFormat.MESSAGES: _OF_CHATS, RowFormat.ALPACA: _OF_ALPACA, RowFormat.TEXT: _OF_TEXTS}
MAPPING = (*_OF_CHATS, "field_system", *_OF_ALPACA, *_OF_TEXTS)
"""Keys that name the columns of a file whose columns have other names than those of its row format."""


class DatasetSpec(TaughtTurns):
    """One dataset of a job. `path` is an upload (`sha256:HEX`), a Hugging Face id, or a file in an allowed folder.

    The server reads the columns that `MAPPING` names, and gives machines a file with the usual names. It sets `sha256`,
    `file_format`, `rows` and `pieces` at submission.
    """

    path: NonBlank
    type: RowFormat = RowFormat.AUTO
    name: Column = None
    split: NonBlank = "train"
    repeats: Annotated[float, Field(gt=0, le=MAX_REPEATS)] = Field(default=1.0, exclude_if=lambda times: times == 1)
    field_messages: Column = None
    message_property_mappings: Names = Field(default={})
    roles: Roles = Field(default={})
    field_system: Column = None
    field_instruction: Column = None
    field_input: Column = None
    field_output: Column = None
    field: Column = None
    sha256: Sha256 | None = None
    file_format: FileFormat | None = None
    rows: Annotated[int, Field(ge=1)] | None = None
    pieces: Annotated[int, Field(ge=0)] | None = Field(default=None, exclude_if=lambda count: count is None)
    """Of a job that splits texts: how many pieces the rows of this file make that are trained on."""

    @property
    def taught(self) -> TaughtTurns:
        """Only the keys that say which turns are trained on."""
        return TaughtTurns(**{name: getattr(self, name) for name in TaughtTurns.model_fields})

    @model_validator(mode="after")
    def _of_one_format(self) -> DatasetSpec:
        named = {kind: next((k for k in keys if getattr(self, k)), None) for kind, keys in _BY_FORMAT.items()}
        given = [(kind, key) for kind, key in named.items() if key is not None]
        if len(given) > 1:
            raise ValueError(f"{given[0][1]} and {given[1][1]} belong to different row formats; remove one of them")
        if given and self.type not in (RowFormat.AUTO, given[0][0]):
            raise ValueError(f"{given[0][1]} belongs to rows of type {given[0][0]}, not {self.type}")
        if self.field_system and (self.type is RowFormat.TASK or (given and given[0][0] is RowFormat.TEXT)):
            raise ValueError("field_system belongs to conversations")
        return self

    def of_an_epoch(self, rows: int) -> int:
        """How many rows an epoch has of `rows` of this file."""
        return max(1, math.floor(rows * self.repeats + 0.5)) if rows else 0

    @property
    def mapping(self) -> dict[str, Any]:
        """The names of columns that are given, as JSON."""
        return self.model_dump(mode="json", include=set(MAPPING))

    @property
    def mapped_format(self) -> RowFormat:
        """The row format whose columns are named, or `type`."""
        return next((kind for kind, keys in _BY_FORMAT.items() if any(getattr(self, k) for k in keys)), self.type)

    @property
    def as_read(self) -> DatasetSpec:
        """The same for a machine: its file has the usual names, and older workers refuse the keys."""
        usual = {key: type(self).model_fields[key].default for key in (*MAPPING, "name")}
        return self.model_copy(update=usual) if self.mapping or self.name else self
