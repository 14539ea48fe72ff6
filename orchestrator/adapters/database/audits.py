"""The repository of audits."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import bindparam, delete, func, select, update

from orchestrator.adapters.database import audit_tables
from orchestrator.adapters.database.compiled_sql import Statement, Upsert
from orchestrator.adapters.database.mapper import Mapper
from orchestrator.adapters.database.repository import SqlRepository
from orchestrator.domain.audits import Audit, AuditLabel, AuditUnit, StrataKind
from orchestrator.domain.trust.audit_estimate import Label

AUDITS = Mapper(Audit, audit_tables.audits, enums={"strata_kind": StrataKind})
UNITS = Mapper(AuditUnit, audit_tables.audit_units)
AUDIT_LABELS = Mapper(AuditLabel, audit_tables.audit_labels, enums={"label": Label})
_audits, _units, _labels = audit_tables.audits, audit_tables.audit_units, audit_tables.audit_labels
_outline = (_units.c.place, _units.c.row, _units.c.turn, _units.c.stratum)
_add_audit, _put_label = Upsert(_audits), Upsert(_labels, ("label", "source", "note"))
_put_unit = Upsert(_units, ("content",))
_order_of = Statement(select(*_outline).where(_units.c.sha256 == bindparam("sha256")).order_by(_units.c.place))


class SqlAuditRepository(SqlRepository):
    """Implements `ports.repository.audits.AuditRepository`."""

    def get(self, sha256: str) -> Audit | None:
        return AUDITS.get(self._connection, sha256=sha256)

    def get_for_update(self, sha256: str) -> Audit | None:
        return AUDITS.get(self._connection, lock=True, sha256=sha256)

    def some(self, hashes: Collection[str]) -> dict[str, Audit]:
        found = AUDITS.where(self._connection, _audits.c.sha256.in_(hashes)) if hashes else []
        return {audit.sha256: audit for audit in found}

    def add(self, audit: Audit) -> bool:
        _add_audit.run(self._connection, AUDITS.dump(audit))
        return self.get_for_update(audit.sha256) == audit

    def save(self, audit: Audit) -> None:
        AUDITS.save(self._connection, audit)

    def delete(self, sha256: str) -> None:
        for table in (_labels, _units, _audits):
            self._connection.execute(delete(table).where(table.c.sha256 == sha256))

    def units(self, sha256: str) -> list[AuditUnit]:
        rows = _order_of.rows(self._connection, {"sha256": sha256})
        return [AuditUnit(sha256=sha256, place=p, row=r, turn=t, stratum=s) for p, r, t, s in rows]

    def unit(self, sha256: str, place: int) -> AuditUnit | None:
        return UNITS.get(self._connection, sha256=sha256, place=place)

    def count_units(self, sha256: str) -> int:
        return self._connection.execute(select(func.count()).where(_units.c.sha256 == sha256)).scalar_one()

    def put_units(self, units: Sequence[AuditUnit]) -> None:
        _put_unit.run(self._connection, *map(UNITS.dump, units))

    def empty_units(self, sha256: str) -> None:
        self._connection.execute(update(_units).where(_units.c.sha256 == sha256).values(content=""))

    def labels(self, sha256: str) -> list[AuditLabel]:
        order = (_labels.c.place, _labels.c.at, _labels.c.member_id)
        rows = self._connection.execute(AUDIT_LABELS.select.where(_labels.c.sha256 == sha256).order_by(*order))
        return [AUDIT_LABELS.load(tuple(row)) for row in rows]

    def put_label(self, label: AuditLabel) -> None:
        _put_label.run(self._connection, AUDIT_LABELS.dump(label))
