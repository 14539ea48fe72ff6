"""The registry of models: their candidates, and the history of what was promoted."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """The tables start empty: nothing of an earlier version is promoted."""
    op.create_table(
        "models",
        sa.Column("member_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("promoted", sa.String(64)),
        sa.Column("moves", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("member_id", "name", name=op.f("pk_models")),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_models_member_id_members")),
        sa.ForeignKeyConstraint(["promoted"], ["jobs.id"], name=op.f("fk_models_promoted_jobs")),
    )
    op.create_index("models_promoted", "models", ["promoted"])
    op.create_table(
        "model_candidates",
        sa.Column("member_id", sa.String(64), nullable=False),
        sa.Column("model", sa.String(100), nullable=False),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("adapter_sha256", sa.String(64), nullable=False),
        sa.Column("added_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("member_id", "model", "job_id", name=op.f("pk_model_candidates")),
        sa.ForeignKeyConstraint(
            ["member_id", "model"],
            ["models.member_id", "models.name"],
            name=op.f("fk_model_candidates_member_id_models"),
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_model_candidates_job_id_jobs")),
    )
    op.create_index("model_candidates_job", "model_candidates", ["job_id"])
    op.create_table(
        "model_moves",
        sa.Column("member_id", sa.String(64), nullable=False),
        sa.Column("model", sa.String(100), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("actor", sa.String(200), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("before", sa.String(64)),
        sa.Column("after", sa.String(64)),
        sa.Column("verdict", sa.String(32)),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("member_id", "model", "number", name=op.f("pk_model_moves")),
        sa.ForeignKeyConstraint(
            ["member_id", "model"], ["models.member_id", "models.name"], name=op.f("fk_model_moves_member_id_models")
        ),
        sa.ForeignKeyConstraint(["before"], ["jobs.id"], name=op.f("fk_model_moves_before_jobs")),
        sa.ForeignKeyConstraint(["after"], ["jobs.id"], name=op.f("fk_model_moves_after_jobs")),
    )
