"""The repository of exports that machines make."""

from __future__ import annotations

from orchestrator.adapters.database.export_tables import machine_exports
from orchestrator.adapters.database.mapper import Mapper
from orchestrator.adapters.database.repository import SqlRepository
from orchestrator.domain.exports import MachineExport

EXPORTS = Mapper(MachineExport, machine_exports, frozen=("trained_job", "settings", "created_at"))
_exports = machine_exports.c


class SqlMachineExportRepository(SqlRepository):
    """Implements `ports.repository.exports.MachineExportRepository`."""

    def get(self, job_id: str) -> MachineExport | None:
        return EXPORTS.get(self._connection, job_id=job_id)

    def of_job(self, trained_job: str) -> list[MachineExport]:
        return EXPORTS.where(self._connection, _exports.trained_job == trained_job, order=_exports.job_id.desc())

    def add(self, export: MachineExport) -> None:
        EXPORTS.add(self._connection, export)

    def save(self, export: MachineExport) -> None:
        EXPORTS.save(self._connection, export)
