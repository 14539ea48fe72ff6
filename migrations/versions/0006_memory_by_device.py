"""What a job needs on a GPU and on a CPU, instead of one estimate for both."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """The old estimate was a CPU's; it stays for both until a job is submitted anew."""
    op.execute("ALTER TABLE jobs RENAME COLUMN memory_bytes TO host_bytes")
    op.add_column("jobs", sa.Column("gpu_bytes", sa.BigInteger(), server_default="0", nullable=False))
    op.execute("UPDATE jobs SET gpu_bytes = host_bytes")
