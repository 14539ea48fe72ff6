"""What the data checks have found in each file, and the file that a clean copy was made of."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Files of earlier versions are not checked yet, and none is a copy."""
    op.add_column("datasets", sa.Column("parent", sa.String(64), nullable=False, server_default=""))
    op.create_table(
        "data_reports",
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("row_format", sa.String(32), nullable=False),
        sa.Column("tokenizer", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", "row_format", "tokenizer", "version", name=op.f("pk_data_reports")),
    )
