"""Separate memory estimates of a job for a GPU and for a CPU."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """The old estimate was for a CPU. It is used for both until a job is submitted again."""
    op.execute("ALTER TABLE jobs RENAME COLUMN memory_bytes TO host_bytes")
    op.add_column("jobs", sa.Column("gpu_bytes", sa.BigInteger(), server_default="0", nullable=False))
    op.execute("UPDATE jobs SET gpu_bytes = host_bytes")
