"""A dataset in a job file."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from worker.shared.wire import NonBlank, Sha256, Written


class RowFormat(StrEnum):
    """The row format of a dataset. `auto` detects it from the first row's keys. No job is trained on a `task`."""

    AUTO = "auto"
    MESSAGES = "messages"
    PROMPT_COMPLETION = "prompt_completion"
    TEXT = "text"
    ALPACA = "alpaca"
    SHAREGPT = "sharegpt"
    TASK = "task"


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


class DatasetSpec(TaughtTurns):
    """One dataset of a job. `path` is an upload (`sha256:HEX`), a Hugging Face id, or a file in an allowed folder.

    The server sets `sha256`, `file_format` and `rows` at submission.
    """

    path: NonBlank
    type: RowFormat = RowFormat.AUTO
    split: NonBlank = "train"
    sha256: Sha256 | None = None
    file_format: FileFormat | None = None
    rows: Annotated[int, Field(ge=1)] | None = None

    @property
    def taught(self) -> TaughtTurns:
        """Only the keys that say which turns are trained on."""
        return TaughtTurns(**{name: getattr(self, name) for name in TaughtTurns.model_fields})
