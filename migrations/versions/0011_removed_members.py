"""When a member was removed: the row stays, because jobs have it for their owner."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Members of earlier versions are all there."""
    op.add_column("members", sa.Column("removed_at", sa.Double()))
