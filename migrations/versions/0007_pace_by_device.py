"""What a step takes on a GPU and on a CPU, instead of one figure for both."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_TIMED = sa.text("gpu_step_s IS NOT NULL OR host_step_s IS NOT NULL")


def upgrade() -> None:
    """Where a step was timed was not kept: the old figure counts for both until one is timed anew."""
    op.drop_index("jobs_timed", "jobs")
    op.execute("ALTER TABLE jobs RENAME COLUMN step_s TO host_step_s")
    op.add_column("jobs", sa.Column("gpu_step_s", sa.Double()))
    op.execute("UPDATE jobs SET gpu_step_s = host_step_s")
    op.create_index("jobs_timed", "jobs", ["id"], sqlite_where=_TIMED, postgresql_where=_TIMED)
