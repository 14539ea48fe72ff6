"""The tables of evaluations, and of the blind comparisons of their answers."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    text,
)

from orchestrator.adapters.database.metadata import short_id
from orchestrator.adapters.database.tables import metadata

_OPEN = text("closed_at IS NULL")

evaluations = Table(
    "evaluations",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("trained_job", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("owner", ForeignKey("members.id"), nullable=False),
    Column("checkpoint_sha256", short_id(), nullable=False),
    Column("adapter_sha256", short_id()),
    Column("settings", JSON, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("answers_sha256", short_id()),
    Column("report", JSON(none_as_null=True)),
    Column("finished_at", Double),
)

evaluation_answers = Table(
    "evaluation_answers",
    metadata,
    Column("job_id", ForeignKey("evaluations.job_id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("prompt", JSON, nullable=False),
    Column("base", Text, nullable=False),
    Column("adapter", Text, nullable=False),
    Column("base_truncated", Boolean, nullable=False),
    Column("adapter_truncated", Boolean, nullable=False),
    Column("base_tokens", Integer, nullable=False),
    Column("adapter_tokens", Integer, nullable=False),
    PrimaryKeyConstraint("job_id", "number"),
)

comparisons = Table(
    "comparisons",
    metadata,
    Column("id", short_id(), primary_key=True),
    Column("job_id", ForeignKey("evaluations.job_id"), nullable=False, index=True),
    Column("member_id", ForeignKey("members.id"), nullable=False),
    Column("question", Text, nullable=False),
    Column("plan", String(16), nullable=False),
    Column("margin", Double),
    Column("margin_prompts", Integer, nullable=False),
    Column("key", short_id(), nullable=False),
    Column("prompts", Integer, nullable=False),
    Column("identical", JSON, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("closed_at", Double),
    Column("ending", String(32)),
    Column("gain", String(16)),
    Index("comparisons_one_open", "job_id", unique=True, sqlite_where=_OPEN, postgresql_where=_OPEN),
)

raters = Table(
    "raters",
    metadata,
    Column("id", short_id(), primary_key=True),
    Column("comparison_id", ForeignKey("comparisons.id"), nullable=False, index=True),
    Column("name", String(100), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("link_hash", short_id(), unique=True),
    Column("cookie_hash", short_id()),
    Column("opened_at", Double),
    Column("revoked_at", Double),
)

votes = Table(
    "votes",
    metadata,
    Column("comparison_id", ForeignKey("comparisons.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("rater_id", ForeignKey("raters.id"), nullable=False),
    Column("choice", String(8), nullable=False),
    Column("note", Text, nullable=False),
    Column("at", Double, nullable=False),
    PrimaryKeyConstraint("comparison_id", "number", "rater_id"),
)
