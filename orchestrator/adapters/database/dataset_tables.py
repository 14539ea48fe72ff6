"""The tables of data files, of who uploaded them, and of what the data checks have found in them."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Double, ForeignKey, Index, Integer, PrimaryKeyConstraint, String, Table

from orchestrator.adapters.database.metadata import metadata, short_id

datasets = Table(
    "datasets",
    metadata,
    Column("sha256", short_id(), primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("file_format", String(16), nullable=False),
    Column("row_format", String(32), nullable=False),
    Column("rows", Integer, nullable=False),
    Column("name", String(255), nullable=False),
    Column("member_id", short_id(), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("key", String(255), nullable=False, server_default=""),
    Column("parent", short_id(), nullable=False, server_default=""),
)

data_reports = Table(
    "data_reports",
    metadata,
    Column("sha256", short_id(), nullable=False),
    Column("row_format", String(32), nullable=False),
    Column("tokenizer", short_id(), nullable=False),
    Column("version", Integer, nullable=False),
    Column("report", JSON, nullable=False),
    Column("created_at", Double, nullable=False),
    PrimaryKeyConstraint("sha256", "row_format", "tokenizer", "version"),
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", short_id(), primary_key=True),
    Column("sha256", ForeignKey("datasets.sha256"), nullable=False),
    Column("member_id", ForeignKey("members.id"), nullable=False),
    Column("name", String(255), nullable=False),
    Column("created_at", Double, nullable=False),
    Index("uploads_once", "sha256", "member_id", unique=True),
    Index("uploads_by_member", "member_id", "id"),
)

discarded = Table("discarded", metadata, Column("key", String(255), primary_key=True), Column("store", String(32)))
