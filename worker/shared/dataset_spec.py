"""A dataset in a job file."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

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


class DatasetSpec(Written):
    """One dataset of a job. `path` is an upload (`sha256:HEX`), a Hugging Face id, or a file in an allowed folder.

    The server sets `sha256`, `file_format` and `rows` at submission.
    """

    path: NonBlank
    type: RowFormat = RowFormat.AUTO
    split: NonBlank = "train"
    sha256: Sha256 | None = None
    file_format: FileFormat | None = None
    rows: Annotated[int, Field(ge=1)] | None = None
