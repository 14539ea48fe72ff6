"""Jobs that start from a checkpoint of another job."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Existing jobs start at step 0. From now on several jobs may use one checkpoint file."""
    op.add_column("jobs", sa.Column("first_step", sa.Integer(), server_default="0", nullable=False))
    cloned = sa.text("cloned_from IS NOT NULL")
    op.create_index("jobs_by_origin", "jobs", ["cloned_from", "id"], sqlite_where=cloned, postgresql_where=cloned)
    in_use = sa.text("state IN ('offered', 'committed')")
    op.create_index("checkpoints_in_use", "checkpoints", ["key"], sqlite_where=in_use, postgresql_where=in_use)
