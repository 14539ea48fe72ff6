"""The schema for SQLite and PostgreSQL. Times are epoch seconds. The partial indexes enforce the promises.

`leases_one_live_per_job` enforces promise 1: the database refuses a second live lease. The claim query scans
`jobs_to_claim`. Without it a claim at a million rows is three orders of magnitude slower.
"""

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
    false,
    text,
)

from orchestrator.adapters.database import dataset_tables
from orchestrator.adapters.database.metadata import metadata
from orchestrator.adapters.database.metadata import short_id as _id

_LIVE = text("state IN ('provisioning', 'active', 'draining')")
"""Literals, not bound parameters, because the planner must prove that a partial index covers the query."""
_QUEUED = text("state = 'queued'")
IS_TIMED = text("gpu_step_s IS NOT NULL OR host_step_s IS NOT NULL")
_IN_USE = text("state IN ('offered', 'committed')")
_UNDELETED = text("state IN ('pruned', 'abandoned', 'corrupt') AND key != ''")
_OF_ONE = text("member_id IS NOT NULL AND token_hash IS NULL")
"""A member may have several machines that have joined by themselves."""
_SERIAL = BigInteger().with_variant(Integer, "sqlite")


datasets, uploads = dataset_tables.datasets, dataset_tables.uploads
discarded, data_reports = dataset_tables.discarded, dataset_tables.data_reports

instance = Table("instance", metadata, Column("id", _id(), primary_key=True))

team = Table(
    "team",
    metadata,
    Column("id", _id(), primary_key=True),
    Column("everyone_sees_jobs", Boolean, nullable=False),
)

members = Table(
    "members",
    metadata,
    Column("id", _id(), primary_key=True),
    Column("name", String(100), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("removed_at", Double),
    Column("hub_token", Text, nullable=False, server_default=""),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", _id(), primary_key=True),
    Column("hash", _id(), nullable=False, unique=True),
    Column("member_id", ForeignKey("members.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("role", String(16), nullable=False),
    Column("name", String(100), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
)

accounts = Table(
    "accounts",
    metadata,
    Column("id", _id(), primary_key=True),
    Column("provider", String(32), nullable=False),
    Column("member_id", ForeignKey("members.id")),
    Column("name", String(100), nullable=False, unique=True),
    Column("config", JSON, nullable=False),
    Column("paused", Boolean, nullable=False),
    Column("not_before", Double, nullable=False),
    Column("note", Text, nullable=False),
    Column("credentials", Text, nullable=False, server_default=""),
    Column("consented_at", Double),
    Column("problem", Text, nullable=False, server_default=""),
    Column("image", JSON, nullable=False, server_default="{}"),
    Column("created_at", Double, nullable=False),
    Column("token_hash", _id()),
    Index(
        "accounts_one_per_member_and_provider",
        "member_id",
        "provider",
        unique=True,
        sqlite_where=_OF_ONE,
        postgresql_where=_OF_ONE,
    ),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", _id(), primary_key=True),
    Column("member_id", ForeignKey("members.id"), nullable=False),
    Column("name", String(200), nullable=False),
    Column("spec", JSON, nullable=False),
    Column("total_steps", Integer, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("deadline", Double),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("state", String(16), nullable=False),
    Column("end_reason", String(32)),
    Column("message", Text, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("head", _id()),
    Column("head_step", Integer, nullable=False),
    Column("losses_in_a_row", Integer, nullable=False),
    Column("failures_in_a_row", Integer, nullable=False),
    Column("not_before", Double, nullable=False),
    Column("cancel_requested_at", Double),
    Column("pause_requested_at", Double),
    Column("cloned_from", _id()),
    Column("first_step", Integer, nullable=False, server_default="0"),
    Column("gpu_bytes", BigInteger, nullable=False, server_default="0"),
    Column("host_bytes", BigInteger, nullable=False),
    Column("gpu_step_s", Double),
    Column("host_step_s", Double),
    Column("adapter_key", String(255)),
    Column("adapter_store", String(32)),
    Column("adapter_zip_sha256", _id()),
    Column("adapter_sha256", _id()),
    Column("adapter_bytes", BigInteger),
    Column("deleted_at", Double),
    Index("jobs_to_claim", "member_id", text("priority DESC"), "id", sqlite_where=_QUEUED, postgresql_where=_QUEUED),
    Index(
        "jobs_due",
        "state",  # only to make the planner prefer this index to `jobs_by_state`
        "deadline",
        sqlite_where=text("state = 'queued' AND deadline IS NOT NULL"),
        postgresql_where=text("state = 'queued' AND deadline IS NOT NULL"),
    ),
    Index("jobs_timed", "id", sqlite_where=IS_TIMED, postgresql_where=IS_TIMED),
    Index(
        "jobs_by_origin",
        "cloned_from",
        "id",
        sqlite_where=text("cloned_from IS NOT NULL"),
        postgresql_where=text("cloned_from IS NOT NULL"),
    ),
    Index("jobs_by_state", "state", "id"),
    Index("jobs_by_member", "member_id", "id"),
)

job_tags = Table(
    "job_tags",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("tag", String(50), primary_key=True),
    Index("job_tags_by_tag", "tag", "job_id"),
)

job_notes = Table(
    "job_notes",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("note", String(500), nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("id", _id(), primary_key=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("member_id", _id(), nullable=False),
    Column("account_id", _id(), nullable=False),
    Column("provider", String(32), nullable=False),
    Column("fence", Integer, nullable=False),
    Column("token_hash", _id(), nullable=False, unique=True),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("deadline_at", Double, nullable=False),
    Column("budget_s", Double, nullable=False),
    Column("one_way", Boolean, key="offline", nullable=False, server_default=false()),
    Column("store", String(32), nullable=False, server_default="local"),
    Column("state", String(16), nullable=False),
    Column("end_reason", String(32)),
    Column("detail", Text, nullable=False),
    Column("cause", String(32), nullable=False, server_default=""),
    Column("image", String(64), nullable=False, server_default=""),
    Column("external_id", String(255)),
    Column("nonce", _id()),
    Column("started_at", Double),
    Column("ended_at", Double),
    Column("collected_at", Double),
    Column("last_seen_at", Double),
    Column("last_seq", Integer, nullable=False),
    Column("first_step", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("phase", String(16), nullable=False),
    Column("backend", String(32)),
    Column("fidelity", String(16)),
    Column("seconds_per_step", Double),
    Column("hardware", JSON, nullable=False),
    Column("ledger", JSON, nullable=False),
    Index("leases_one_live_per_job", "job_id", unique=True, sqlite_where=_LIVE, postgresql_where=_LIVE),
    Index("leases_live_counts", "member_id", "account_id", sqlite_where=_LIVE, postgresql_where=_LIVE),
    Index("leases_by_job", "job_id", "fence", unique=True),
    Index(
        "leases_uncollected",
        "id",
        sqlite_where=text("collected_at IS NULL"),
        postgresql_where=text("collected_at IS NULL"),
    ),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("sha256", _id(), nullable=False),
    Column("lease_id", _id(), nullable=False),
    Column("fence", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("parent", _id()),
    Column("key", String(255), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("store", String(32), nullable=False),
    Column("manifest", JSON, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("state", String(16), nullable=False),
    PrimaryKeyConstraint("job_id", "sha256"),
    Index(
        "checkpoints_one_child_per_head",
        "job_id",
        text("coalesce(parent, '')"),
        unique=True,
        sqlite_where=text("state IN ('committed', 'pruned')"),
        postgresql_where=text("state IN ('committed', 'pruned')"),
    ),
    Index("checkpoints_in_use", "key", sqlite_where=_IN_USE, postgresql_where=_IN_USE),
    Index("checkpoints_undeleted", "created_at", sqlite_where=_UNDELETED, postgresql_where=_UNDELETED),
    Index(
        "checkpoints_offered",
        "created_at",
        sqlite_where=text("state = 'offered'"),
        postgresql_where=text("state = 'offered'"),
    ),
)

claims = Table(
    "claims",
    metadata,
    Column("code_hash", _id(), primary_key=True),
    Column("job_id", ForeignKey("jobs.id")),
    Column("member_id", ForeignKey("members.id"), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False, index=True),
    Column("used_at", Double),
    Column("lease_id", _id()),
    Column("nonce", _id()),
    Column("store", String(32), nullable=False),
    Column("mailbox", String(100), nullable=False),
    Column("provider", String(32), nullable=False, server_default=""),
    Column("shared", Boolean, nullable=False, server_default=false()),
    Column("account_id", _id()),
    Index("claims_by_mailbox", "mailbox", sqlite_where=text("mailbox != ''"), postgresql_where=text("mailbox != ''")),
)

stores = Table(
    "stores",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("config", JSON, nullable=False),
    Column("credentials", Text, nullable=False),
    Column("current", Boolean, nullable=False),
    Column("problem", Text, nullable=False),
    Column("created_at", Double, nullable=False),
)

store_objects = Table(
    "store_objects",
    metadata,
    Column("store", String(32), nullable=False),
    Column("key", String(255), nullable=False),
    Column("external_id", String(255), nullable=False),
    PrimaryKeyConstraint("store", "key"),
)

events = Table(
    "events",
    metadata,
    Column("id", _SERIAL, primary_key=True, autoincrement=True),
    Column("job_id", _id(), nullable=False),
    Column("at", Double, nullable=False),
    Column("kind", String(48), nullable=False),
    Column("actor", String(100), nullable=False),
    Column("lease_id", _id()),
    Column("reason", Text, nullable=False),
    Column("data", JSON, nullable=False),
    Index("events_by_job", "job_id", "id"),
)

MAX_VALUE = 1e300
"""A larger value is neither drawn nor ordered by. Metrics may be infinite."""
metrics = Table(
    "metrics",
    metadata,
    Column("job_id", _id(), nullable=False),
    Column("name", String(64), nullable=False),
    Column("step", Integer, nullable=False),
    Column("value", Double, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("at", Double, nullable=False),
    PrimaryKeyConstraint("job_id", "name", "step"),
    sqlite_with_rowid=False,
)

samples = Table(
    "samples",
    metadata,
    Column("job_id", _id(), nullable=False),
    Column("step", Integer, nullable=False),
    Column("prompt_sha256", _id(), nullable=False),
    Column("prompt", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("at", Double, nullable=False),
    PrimaryKeyConstraint("job_id", "step", "prompt_sha256"),
)

readings = Table(
    "readings",
    metadata,
    Column("lease_id", _id(), nullable=False),
    Column("at", Double, nullable=False),
    Column("step", Integer, nullable=False),
    Column("reading", JSON, nullable=False),
    PrimaryKeyConstraint("lease_id", "at"),
    sqlite_with_rowid=False,
)

remembered = Table(
    "remembered_requests",
    metadata,
    Column("member_id", _id(), nullable=False),
    Column("key", String(255), nullable=False),
    Column("request_hash", _id(), nullable=False),
    Column("answer", JSON, nullable=False),
    Column("at", Double, nullable=False, index=True),
    PrimaryKeyConstraint("member_id", "key"),
)

channels = Table(
    "channels",
    metadata,
    Column("id", _id(), primary_key=True),
    Column("member_id", ForeignKey("members.id"), nullable=False, index=True),
    Column("job_id", _id()),
    Column("kind", String(16), nullable=False),
    Column("label", String(255), nullable=False),
    Column("sealed", Text, nullable=False),
    Column("topics", JSON, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("after_event", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", _id(), primary_key=True),
    Column("channel_id", _id(), nullable=False),
    Column("key", String(255), nullable=False),
    Column("topic", String(32), nullable=False),
    Column("title", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("body", JSON, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("detail", Text, nullable=False),
    Column("next_at", Double, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("sent_at", Double),
    Index("deliveries_once", "channel_id", "key", unique=True),
    Index(
        "deliveries_due",
        "next_at",
        sqlite_where=text("state = 'pending'"),
        postgresql_where=text("state = 'pending'"),
    ),
)
