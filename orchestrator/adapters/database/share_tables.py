"""The table of links to pages of jobs."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Double, ForeignKey, Table

from orchestrator.adapters.database.metadata import short_id
from orchestrator.adapters.database.tables import metadata

shares = Table(
    "shares",
    metadata,
    Column("id", short_id(), primary_key=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("member_id", ForeignKey("members.id"), nullable=False),
    Column("secret_hash", short_id(), nullable=False, unique=True),
    Column("with_samples", Boolean, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
)
