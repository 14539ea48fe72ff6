"""Discarded objects name their store, so that the adapters of deleted jobs are among them."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    """Objects of earlier versions are those of datasets, which have no store."""
    op.add_column("discarded", sa.Column("store", sa.String(32)))
