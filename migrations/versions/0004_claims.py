"""One-time codes that notebooks exchange for a job's lease."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add a table. A code is stored as its hash."""
    op.create_table(
        "claims",
        sa.Column("code_hash", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("member_id", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("used_at", sa.Double(), nullable=True),
        sa.Column("lease_id", sa.String(length=64), nullable=True),
        sa.Column("nonce", sa.String(length=64), nullable=True),
        sa.Column("store", sa.String(length=32), nullable=False),
        sa.Column("mailbox", sa.String(length=100), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_claims_job_id_jobs")),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_claims_member_id_members")),
        sa.PrimaryKeyConstraint("code_hash", name=op.f("pk_claims")),
    )
    op.create_index(op.f("ix_claims_expires_at"), "claims", ["expires_at"])
    with_one = sa.text("mailbox != ''")
    op.create_index("claims_by_mailbox", "claims", ["mailbox"], sqlite_where=with_one, postgresql_where=with_one)
