"""The repository of audits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from orchestrator.domain.audits import Audit, AuditLabel, AuditUnit


class AuditRepository(Protocol):
    """Audits by the sha256 of their dataset, with the units of the sample and the labels."""

    def get(self, sha256: str) -> Audit | None: ...
    def get_for_update(self, sha256: str) -> Audit | None:
        """The audit, locked against all others until the transaction ends."""
        ...

    def some(self, hashes: Collection[str]) -> dict[str, Audit]:
        """The audits of these datasets, by sha256. Datasets without one are left out."""
        ...

    def add(self, audit: Audit) -> bool:
        """Add the audit unless the dataset has another one. Returns whether the stored one is equal, and locks it."""
        ...

    def save(self, audit: Audit) -> None: ...
    def delete(self, sha256: str) -> None:
        """Delete the audit with its units and labels."""
        ...

    def units(self, sha256: str) -> list[AuditUnit]:
        """The drawn units in their order, without their content."""
        ...

    def unit(self, sha256: str, place: int) -> AuditUnit | None:
        """One unit with its content."""
        ...

    def count_units(self, sha256: str) -> int:
        """Number of drawn units."""
        ...

    def put_units(self, units: Sequence[AuditUnit]) -> None:
        """Add units, or the content of units that are there."""
        ...

    def empty_units(self, sha256: str) -> None:
        """Delete the content of all units."""
        ...

    def labels(self, sha256: str) -> list[AuditLabel]:
        """All labels by place, those of one place in the order of their times."""
        ...

    def put_label(self, label: AuditLabel) -> None:
        """Add a label, or replace the member's earlier one. The time of the first one stays."""
        ...
