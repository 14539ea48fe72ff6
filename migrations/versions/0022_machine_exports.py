"""Exports of adapters that machines make."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    """The table starts empty: in earlier versions only the server made exports."""
    op.create_table(
        "machine_exports",
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("trained_job", sa.String(64), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("store", sa.String(32)),
        sa.Column("keys", sa.JSON()),
        sa.Column("report", sa.JSON()),
        sa.Column("finished_at", sa.Double()),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_machine_exports")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_machine_exports_job_id_jobs")),
        sa.ForeignKeyConstraint(["trained_job"], ["jobs.id"], name=op.f("fk_machine_exports_trained_job_jobs")),
    )
    op.create_index(op.f("ix_machine_exports_trained_job"), "machine_exports", ["trained_job"])
