"""The table of exports that machines make."""

from __future__ import annotations

from sqlalchemy import JSON, Column, Double, ForeignKey, String, Table

from orchestrator.adapters.database.tables import metadata

machine_exports = Table(
    "machine_exports",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("trained_job", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("settings", JSON, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("store", String(32)),
    Column("keys", JSON(none_as_null=True)),
    Column("report", JSON(none_as_null=True)),
    Column("finished_at", Double),
)
