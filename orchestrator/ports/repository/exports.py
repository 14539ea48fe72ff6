"""The repository of exports that machines make."""

from __future__ import annotations

from typing import Protocol

from orchestrator.domain.exports import MachineExport


class MachineExportRepository(Protocol):
    """Exports by the id of their own job."""

    def get(self, job_id: str) -> MachineExport | None: ...
    def of_job(self, trained_job: str) -> list[MachineExport]:
        """The exports of a trained job, newest first."""
        ...

    def add(self, export: MachineExport) -> None: ...
    def save(self, export: MachineExport) -> None: ...
