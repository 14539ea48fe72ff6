"""Ids of files: of an upload by its sha256, and of a job's results. An id is no permission."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from orchestrator.domain.errors import NotFoundError

Kind = Literal["metrics", "adapter"]
NAMES: dict[Kind, str] = {"metrics": "metrics.csv", "adapter": "adapter.zip"}
_UPLOAD = re.compile(r"file-([0-9a-f]{64})")
_RESULT = re.compile(r"file-(job-[0-9a-z]{1,60})-(metrics|adapter)")


@dataclass(frozen=True)
class Result:
    """A result of a job."""

    job_id: str
    kind: Kind

    @property
    def id(self) -> str:
        """Its id as a file."""
        return f"file-{self.job_id}-{self.kind}"

    @property
    def name(self) -> str:
        """A name for a download."""
        return f"{self.job_id}-{NAMES[self.kind]}"


def upload_id(sha256: str) -> str:
    """The id of an upload."""
    return f"file-{sha256}"


def sha256_of(file_id: str) -> str:
    """The sha256 of an upload's id. Raises `NotFoundError` for what is none."""
    found = _UPLOAD.fullmatch(file_id)
    if found is None:
        raise NotFoundError(f"There is no file {file_id}.")
    return found[1]


def result_of(file_id: str) -> Result | None:
    """The result with this id, or None if it is not the id of one."""
    found = _RESULT.fullmatch(file_id)
    if found is None:
        return None
    return Result(found[1], "adapter" if found[2] == "adapter" else "metrics")
