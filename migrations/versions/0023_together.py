"""The settings of an installation for all its members, links to pages of jobs, and tags of jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    """All tables start empty, so members of an earlier version still see only their own jobs.

    The first start of a new server fills the settings.
    """
    op.create_table(
        "team",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("everyone_sees_jobs", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_team")),
    )
    op.create_table(
        "shares",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("member_id", sa.String(64), nullable=False),
        sa.Column("secret_hash", sa.String(64), nullable=False),
        sa.Column("with_samples", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double()),
        sa.Column("revoked_at", sa.Double()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shares")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_shares_job_id_jobs")),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_shares_member_id_members")),
        sa.UniqueConstraint("secret_hash", name=op.f("uq_shares_secret_hash")),
    )
    op.create_index(op.f("ix_shares_job_id"), "shares", ["job_id"])
    op.create_table(
        "job_tags",
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("tag", sa.String(50), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "tag", name=op.f("pk_job_tags")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_tags_job_id_jobs")),
    )
    op.create_index("job_tags_by_tag", "job_tags", ["tag", "job_id"])
