"""The tables of judge endpoints and judgements. A judgement outlives its endpoint."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
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

_RUNNING = text("state = 'running'")

judge_endpoints = Table(
    "judge_endpoints",
    metadata,
    Column("id", short_id(), primary_key=True),
    Column("member_id", ForeignKey("members.id"), nullable=False),
    Column("name", String(100), nullable=False),
    Column("url", Text, nullable=False),
    Column("model", String(200), nullable=False),
    Column("sealed", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("consented_at", Double),
    Column("consented_by", String(100), nullable=False),
    Index("judge_endpoints_name", "member_id", "name", unique=True),
)

judgements = Table(
    "judgements",
    metadata,
    Column("id", short_id(), primary_key=True),
    Column("job_id", ForeignKey("evaluations.job_id"), nullable=False, index=True),
    Column("member_id", ForeignKey("members.id"), nullable=False),
    Column("endpoint_id", short_id(), nullable=False),
    Column("url", Text, nullable=False),
    Column("model", String(200), nullable=False),
    Column("prompt_version", Integer, nullable=False),
    Column("prompts", Integer, nullable=False),
    Column("identical", JSON, nullable=False),
    Column("max_tokens", BigInteger, nullable=False),
    Column("used_tokens", BigInteger, nullable=False),
    Column("reserved_tokens", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("fruitless", Integer, nullable=False),
    Column("not_before", Double, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("finished_at", Double),
    Index("judgements_one_running", "job_id", unique=True, sqlite_where=_RUNNING, postgresql_where=_RUNNING),
)

judge_answers = Table(
    "judge_answers",
    metadata,
    Column("judgement_id", ForeignKey("judgements.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("adapter_first", Boolean, nullable=False),
    Column("verdict", String(8)),
    Column("failure", Text, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("is_estimated", Boolean, nullable=False),
    Column("at", Double, nullable=False),
    PrimaryKeyConstraint("judgement_id", "number", "adapter_first"),
)
