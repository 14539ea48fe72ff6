"""The time at which a job was deleted. Its row stays for the hours that its sessions used."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Jobs of earlier versions are not deleted."""
    op.add_column("jobs", sa.Column("deleted_at", sa.Double()))
