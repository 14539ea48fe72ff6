"""The settings of an installation for all its members."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    """The table starts empty, so members of an earlier version still see only their own jobs.

    The first start of a new server fills it.
    """
    op.create_table(
        "team",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("everyone_sees_jobs", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_team")),
    )
