"""The time at which a member was removed. The row stays, because it is the owner of jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Members of earlier versions are not removed."""
    op.add_column("members", sa.Column("removed_at", sa.Double()))
