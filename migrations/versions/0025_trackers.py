"""Runs at experiment trackers, and members' logins there."""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"

_UNFINISHED = sa.text("told = '' AND gave_up_at IS NULL")


def upgrade() -> None:
    """The tables start empty: no earlier version wrote to trackers."""
    op.create_table(
        "tracked_runs",
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("tracker", sa.String(32), nullable=False),
        sa.Column("member_id", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("written_step", sa.Integer(), nullable=False),
        sa.Column("told", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("not_before", sa.Double(), nullable=False),
        sa.Column("gave_up_at", sa.Double()),
        sa.Column("url", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "tracker", name=op.f("pk_tracked_runs")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_tracked_runs_job_id_jobs")),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_tracked_runs_member_id_members")),
    )
    op.create_index(
        "tracked_runs_unfinished",
        "tracked_runs",
        ["not_before"],
        sqlite_where=_UNFINISHED,
        postgresql_where=_UNFINISHED,
    )
    op.create_table(
        "tracker_logins",
        sa.Column("member_id", sa.String(64), nullable=False),
        sa.Column("tracker", sa.String(32), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("member_id", "tracker", name=op.f("pk_tracker_logins")),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_tracker_logins_member_id_members")),
    )
