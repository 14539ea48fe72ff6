"""Data files that members uploaded, and the stores that were set up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ADAPTER = "adapter"
"""The `row_format` of a file without rows: the archive of an adapter that jobs continue from."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """An uploaded file, kept once by its sha256.

    `key` is its place in the server's own store and is never used again for another file. `name` and `member_id` are
    those of the first upload.
    """

    sha256: str
    size: int
    file_format: str
    row_format: str
    rows: int
    name: str
    member_id: str
    created_at: float
    key: str
    parent: str = ""
    """The sha256 of the file that this one is a clean copy of."""


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What the data checks have found in a file that is read in a row format, as plain data.

    `tokenizer` is a hash of the settings of a job that the finding depends on, or empty. `version` is that of the
    checks.
    """

    sha256: str
    row_format: str
    tokenizer: str
    version: int
    report: dict[str, Any]
    created_at: float


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A record that a member uploaded a file, with the name they gave it."""

    id: str
    sha256: str
    member_id: str
    name: str
    created_at: float


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """A store that was set up: the driver's `config`, its sealed `credentials`, and whether new files go there.

    `problem` says in words what a person must correct before it can be used again.
    """

    name: str
    config: dict[str, Any]
    credentials: str = field(default="", repr=False)
    current: bool = False
    problem: str = ""
    created_at: float
