"""Notes of jobs: what their owners write about them."""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"


def upgrade() -> None:
    """The table starts empty: a job without a row has no note."""
    op.create_table(
        "job_notes",
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("note", sa.String(500), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_job_notes")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_notes_job_id_jobs")),
    )
