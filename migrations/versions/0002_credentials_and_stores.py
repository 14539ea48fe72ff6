"""Accounts with encrypted credentials and their owner's consent, and stores other than the local folder."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add columns and tables. Every new column has a default, so existing rows stay valid."""
    op.add_column("accounts", sa.Column("credentials", sa.Text(), server_default="", nullable=False))
    op.add_column("accounts", sa.Column("consented_at", sa.Double(), nullable=True))
    op.add_column("accounts", sa.Column("problem", sa.Text(), server_default="", nullable=False))
    op.add_column("jobs", sa.Column("adapter_store", sa.String(length=32), nullable=True))
    op.add_column("leases", sa.Column("one_way", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("leases", sa.Column("store", sa.String(length=32), server_default="local", nullable=False))
    op.execute("UPDATE jobs SET adapter_store = 'local' WHERE adapter_key IS NOT NULL")
    op.create_table(
        "stores",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("credentials", sa.Text(), nullable=False),
        sa.Column("current", sa.Boolean(), nullable=False),
        sa.Column("problem", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_stores")),
    )
    op.create_table(
        "store_objects",
        sa.Column("store", sa.String(length=32), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("external_id", sa.String(length=255), nullable=False),
        sa.PrimaryKeyConstraint("store", "key", name=op.f("pk_store_objects")),
    )
