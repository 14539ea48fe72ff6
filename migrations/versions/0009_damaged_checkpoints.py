"""Damaged checkpoints are among those whose object is still to be deleted."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

_UNDELETED = sa.text("state IN ('pruned', 'abandoned', 'corrupt') AND key != ''")


def upgrade() -> None:
    """Their files were kept for ever; the first round after this finds them."""
    op.drop_index("checkpoints_undeleted", "checkpoints")
    op.create_index(
        "checkpoints_undeleted", "checkpoints", ["created_at"], sqlite_where=_UNDELETED, postgresql_where=_UNDELETED
    )
