"""The table of pushes to the Hugging Face hub."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Double, ForeignKey, Index, Integer, String, Table, Text, text

from orchestrator.adapters.database.metadata import short_id
from orchestrator.adapters.database.tables import metadata

_RUNNING = text("state = 'running'")

pushes = Table(
    "pushes",
    metadata,
    Column("id", short_id(), primary_key=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("member_id", ForeignKey("members.id"), nullable=False),
    Column("repo", String(200), nullable=False),
    Column("is_public", Boolean, nullable=False),
    Column("replace", Boolean, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("not_before", Double, nullable=False),
    Column("commit_id", String(64), nullable=False),
    Column("made_commit", Boolean, nullable=False),
    Column("finished_at", Double),
    Index("pushes_one_running", "job_id", unique=True, sqlite_where=_RUNNING, postgresql_where=_RUNNING),
)
