"""Separate step times of a job for a GPU and for a CPU."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_TIMED = sa.text("gpu_step_s IS NOT NULL OR host_step_s IS NOT NULL")


def upgrade() -> None:
    """The old step time has no device. It is used for both until a step is timed again."""
    op.drop_index("jobs_timed", "jobs")
    op.execute("ALTER TABLE jobs RENAME COLUMN step_s TO host_step_s")
    op.add_column("jobs", sa.Column("gpu_step_s", sa.Double()))
    op.execute("UPDATE jobs SET gpu_step_s = host_step_s")
    op.create_index("jobs_timed", "jobs", ["id"], sqlite_where=_TIMED, postgresql_where=_TIMED)
