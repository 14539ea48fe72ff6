"""Calls a function of `check_process` about stored data files, in a process with limits, and names its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.domain.storage import DataReport, Dataset
from orchestrator.services.context import Context
from orchestrator.services.datasets import copied
from orchestrator.services.running_checks import RunningChecks
from worker.shared.data_checks import VERSION

CPU_S, CPU_S_PER_MIB = 60, 4
"""Computing time for a file, and per MiB of it that is checked."""
MAX_MIB = 512
Json = dict[str, Any]


def within_limits(ctx: Context, checks: RunningChecks, dataset: Dataset, function: str, **more: Any) -> Json:
    """The answer of the function about a file. Raises `LimitError`."""
    with copied(ctx, dataset) as path:
        return in_process(checks, function, as_read(path, dataset) | more, dataset.size)


def in_process(checks: RunningChecks, function: str, request: Json, size: int) -> Json:
    """The answer of a function of `check_process` for files of `size` bytes. Raises `LimitError`."""
    cpu_s = CPU_S + CPU_S_PER_MIB * min(size >> 20, MAX_MIB)
    name = f"orchestrator.services.check_process:{function}"
    return checks.call(name, request, cpu_s=cpu_s, memory_bytes=checks.memory_bytes)


def as_read(path: Path, dataset: Dataset) -> Json:
    """A file and how it is read, for `check_process`."""
    return {
        "path": str(path),
        "row_format": dataset.row_format,
        "container": dataset.file_format,
        "rows": dataset.rows,
    }


def as_stored(sha256: str, row_format: str, tokenizer: str, report: Json, now: float) -> DataReport:
    """A report of this version of the checks."""
    return DataReport(
        sha256=sha256, row_format=row_format, tokenizer=tokenizer, version=VERSION, report=report, created_at=now
    )
