"""Exports: adapters merged into their base models, or as GGUF.

The server keeps its own for some days. One that a machine has made is the result of a job, and kept until that is
deleted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class ExportFormat(StrEnum):
    """What is made of an adapter."""

    MERGED = "merged"
    GGUF = "gguf"
    GGUF_ADAPTER = "gguf-adapter"


class WeightType(StrEnum):
    """Types of the weights."""

    FP16 = "fp16"
    BF16 = "bf16"
    Q8_0 = "q8_0"


class Onto(StrEnum):
    """Forms of the base model."""

    ORIGINAL = "original"
    NF4 = "nf4"


class ExportState(StrEnum):
    """What became of an export."""

    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen."""
        return self in (ExportState.SUCCEEDED, ExportState.FAILED)


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """How an adapter is exported. `type` None: fp16 where values and activations fit, else bf16."""

    format: ExportFormat
    type: WeightType | None = None
    onto: Onto = Onto.ORIGINAL


@dataclass(frozen=True, kw_only=True)
class Export:
    """One export of a job on this server. `doing` is its current step, or why it failed.

    `member_id` is who waits for it, until it has ended. `report` is what the exporter wrote beside the files: their
    names, sizes and sha256, the check, and commands.
    """

    job_id: str
    settings: ExportSettings
    at: float
    member_id: str = ""
    state: ExportState = ExportState.WAITING
    doing: str = ""
    report: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(kw_only=True)
class MachineExport:
    """The export of the adapter of `trained_job` on a machine. It has the id of its own job.

    `settings` is the `export` of the job file. The others are None until the job is done: `keys` are those of the files
    in `store`, by their names. `report` is as in `Export`.
    """

    job_id: str
    trained_job: str
    settings: dict[str, Any]
    created_at: float
    store: str | None = None
    keys: dict[str, str] | None = None
    report: dict[str, Any] | None = None
    finished_at: float | None = None
