"""Why a session made no step, its machine's image, the results of account checks, and members' hub tokens."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """The new columns are empty for existing rows."""
    op.add_column("members", sa.Column("hub_token", sa.Text(), nullable=False, server_default=""))
    op.add_column("accounts", sa.Column("image", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("leases", sa.Column("cause", sa.String(32), nullable=False, server_default=""))
    op.add_column("leases", sa.Column("image", sa.String(64), nullable=False, server_default=""))
