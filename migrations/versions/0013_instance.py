"""The id of the instance that uses this database. Its data folder has the same id."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """The next start fills the table."""
    op.create_table(
        "instance",
        sa.Column("id", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instance")),
    )
