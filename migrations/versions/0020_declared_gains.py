"""A blind comparison may name where a gain is expected that its margin is given up for."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    """No comparison of earlier versions has declared one."""
    op.add_column("comparisons", sa.Column("gain", sa.String(16)))
