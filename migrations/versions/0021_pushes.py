"""Pushes of adapters to the Hugging Face hub."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"

_RUNNING = sa.text("state = 'running'")


def upgrade() -> None:
    """The table starts empty: no earlier version pushed."""
    op.create_table(
        "pushes",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("member_id", sa.String(64), nullable=False),
        sa.Column("repo", sa.String(200), nullable=False),
        sa.Column("is_public", sa.Boolean(), nullable=False),
        sa.Column("replace", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("not_before", sa.Double(), nullable=False),
        sa.Column("commit_id", sa.String(64), nullable=False),
        sa.Column("made_commit", sa.Boolean(), nullable=False),
        sa.Column("finished_at", sa.Double()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pushes")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_pushes_job_id_jobs")),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_pushes_member_id_members")),
    )
    op.create_index(op.f("ix_pushes_job_id"), "pushes", ["job_id"])
    op.create_index(
        "pushes_one_running", "pushes", ["job_id"], unique=True, sqlite_where=_RUNNING, postgresql_where=_RUNNING
    )
