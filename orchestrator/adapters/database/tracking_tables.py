"""The tables of runs at experiment trackers, and of members' logins there."""

from __future__ import annotations

from sqlalchemy import Column, Double, ForeignKey, Index, Integer, PrimaryKeyConstraint, String, Table, Text, text

from orchestrator.adapters.database.tables import metadata

_UNFINISHED = text("told = '' AND gave_up_at IS NULL")

tracked_runs = Table(
    "tracked_runs",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("tracker", String(32), nullable=False),
    Column("member_id", ForeignKey("members.id"), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("written_step", Integer, nullable=False),
    Column("told", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("not_before", Double, nullable=False),
    Column("gave_up_at", Double),
    Column("url", Text, nullable=False),
    PrimaryKeyConstraint("job_id", "tracker"),
    Index("tracked_runs_unfinished", "not_before", sqlite_where=_UNFINISHED, postgresql_where=_UNFINISHED),
)

tracker_logins = Table(
    "tracker_logins",
    metadata,
    Column("member_id", ForeignKey("members.id"), nullable=False),
    Column("tracker", String(32), nullable=False),
    Column("sealed", Text, nullable=False),
    PrimaryKeyConstraint("member_id", "tracker"),
)
