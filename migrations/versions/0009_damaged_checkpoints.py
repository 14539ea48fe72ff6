"""Include damaged checkpoints in the index of checkpoints with an object to delete."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

_UNDELETED = sa.text("state IN ('pruned', 'abandoned', 'corrupt') AND key != ''")


def upgrade() -> None:
    """Earlier versions kept these files forever. The first cleanup after this revision deletes them."""
    op.drop_index("checkpoints_undeleted", "checkpoints")
    op.create_index(
        "checkpoints_undeleted", "checkpoints", ["created_at"], sqlite_where=_UNDELETED, postgresql_where=_UNDELETED
    )
