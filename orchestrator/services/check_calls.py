"""Calls a function of `check_process` about a stored data file, in a process with limits."""

from __future__ import annotations

from typing import Any

from orchestrator.domain.storage import Dataset
from orchestrator.services.context import Context
from orchestrator.services.datasets import copied
from orchestrator.services.running_checks import RunningChecks
from worker.shared import limited_call

CPU_S, CPU_S_PER_MIB = 60, 4
"""Computing time for a file, and per MiB of it that is checked."""
MAX_MIB = 512
Json = dict[str, Any]


def within_limits(ctx: Context, checks: RunningChecks, dataset: Dataset, function: str, **more: Any) -> Json:
    """The answer of the function about the file. Raises `LimitError`."""
    with copied(ctx, dataset) as path:
        request: Json = {
            "path": str(path),
            "row_format": dataset.row_format,
            "container": dataset.file_format,
            "rows": dataset.rows,
            **more,
        }
        cpu_s = CPU_S + CPU_S_PER_MIB * min(dataset.size >> 20, MAX_MIB)
        name = f"orchestrator.services.check_process:{function}"
        return limited_call.call(name, request, cpu_s=cpu_s, memory_bytes=checks.memory_bytes)
