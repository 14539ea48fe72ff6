"""The tables of the registry of models. They name jobs, whose rows stay when their files are deleted."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    PrimaryKeyConstraint,
    String,
    Table,
)

from orchestrator.adapters.database.tables import metadata

NAME = String(100)

models = Table(
    "models",
    metadata,
    Column("member_id", ForeignKey("members.id"), nullable=False),
    Column("name", NAME, nullable=False),
    Column("promoted", ForeignKey("jobs.id")),
    Column("moves", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    PrimaryKeyConstraint("member_id", "name"),
    Index("models_promoted", "promoted"),
)

candidates = Table(
    "model_candidates",
    metadata,
    Column("member_id", String(64), nullable=False),
    Column("model", NAME, nullable=False),
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("adapter_sha256", String(64), nullable=False),
    Column("added_at", Double, nullable=False),
    PrimaryKeyConstraint("member_id", "model", "job_id"),
    ForeignKeyConstraint(["member_id", "model"], ["models.member_id", "models.name"]),
    Index("model_candidates_job", "job_id"),
)

moves = Table(
    "model_moves",
    metadata,
    Column("member_id", String(64), nullable=False),
    Column("model", NAME, nullable=False),
    Column("number", Integer, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("actor", String(200), nullable=False),
    Column("at", Double, nullable=False),
    Column("before", ForeignKey("jobs.id")),
    Column("after", ForeignKey("jobs.id")),
    Column("verdict", String(32)),
    Column("reasons", JSON, nullable=False),
    PrimaryKeyConstraint("member_id", "model", "number"),
    ForeignKeyConstraint(["member_id", "model"], ["models.member_id", "models.name"]),
)
