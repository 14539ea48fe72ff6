"""The job in a shared place, and what a finished one leaves there beside its checkpoints."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from worker.shared.job_spec import JobSpec
from worker.shared.messages import Assignment, Grant
from worker.shared.wire import Bytes, Count, Id, Line, Sha256, Text, Wire

RESULT = "RESULT.json"
"""The document that a finished job leaves."""
ADAPTER = "adapter/"
"""The names of the adapter's files begin with this."""


class DataFile(Wire):
    """A data file as machines read it, under the name `data_name(sha256)`."""

    sha256: Sha256
    size: Bytes
    name: Line = ""


class PlaceJob(Wire):
    """A resolved job. All its sessions train from it.

    `asked` is the job file as it was written, with what identifies its data, to compare a later one with. `notes` are
    what its author should know.
    """

    format: Literal[1] = 1
    id: Id
    spec: JobSpec
    rendered_at: float
    data: Annotated[tuple[DataFile, ...], Field(max_length=16)]
    asked: dict[str, Any]
    notes: Annotated[tuple[Text, ...], Field(max_length=100)] = ()

    def assignment(
        self,
        *,
        fence: int,
        lease: str,
        seconds_left: float,
        datasets: tuple[Grant, ...],
        resume: Grant | None,
        step: int,
    ) -> Assignment:
        """What a session of the job gets. `step` is that of the checkpoint `resume`."""
        return Assignment(
            job=self.id,
            lease=lease,
            fence=fence,
            spec=self.spec,
            rendered_at=self.rendered_at,
            seconds_left=seconds_left,
            datasets=datasets,
            resume=resume,
            resume_step=step,
        )


class ResultFile(Wire):
    """One file of the adapter's folder."""

    sha256: Sha256
    size: Bytes


class PlaceResult(Wire):
    """How a job ended. `adapter_sha256` is the hash of the adapter's weights. `files` are those of its folder.

    `metrics` is the name of the file with the job's curves.
    """

    format: Literal[1] = 1
    job: Id
    step: Count
    adapter_sha256: Sha256
    files: Annotated[dict[Line, ResultFile], Field(max_length=200)]
    metrics: Line
    nonce: Id


def data_name(sha256: str) -> str:
    """The name of a data file in the place."""
    return f"data/{sha256}"


def metrics_name(step: int, epoch: int) -> str:
    """The name of the file with all rows up to the checkpoint of this step, written by this epoch's session."""
    return f"metrics/{step:08d}-{epoch}.jsonl"
