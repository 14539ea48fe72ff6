"""The tables of audits. They name a dataset by its sha256 and stay when its file is deleted."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Double, ForeignKey, Integer, PrimaryKeyConstraint, String, Table, Text

from orchestrator.adapters.database.tables import metadata

audits = Table(
    "audits",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("member_id", ForeignKey("members.id"), nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("strata_kind", String(16), nullable=False),
    Column("strata", JSON, nullable=False),
    Column("max_wrong", Double),
    Column("row_format", String(32), nullable=False),
    Column("counts", JSON, nullable=False),
    Column("created_at", Double, nullable=False),
)

audit_units = Table(
    "audit_units",
    metadata,
    Column("sha256", ForeignKey("audits.sha256"), nullable=False),
    Column("place", Integer, nullable=False),
    Column("row", Integer, nullable=False),
    Column("turn", Integer, nullable=False),
    Column("stratum", String(200), nullable=False),
    Column("content", Text, nullable=False),
    PrimaryKeyConstraint("sha256", "place"),
)

audit_labels = Table(
    "audit_labels",
    metadata,
    Column("sha256", ForeignKey("audits.sha256"), nullable=False),
    Column("place", Integer, nullable=False),
    Column("member_id", ForeignKey("members.id"), nullable=False),
    Column("label", String(16), nullable=False),
    Column("source", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("at", Double, nullable=False),
    PrimaryKeyConstraint("sha256", "place", "member_id"),
)
