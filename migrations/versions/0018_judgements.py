"""Judge endpoints, and the judgements of evaluations with the judges' answers."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"

_RUNNING = sa.text("state = 'running'")


def upgrade() -> None:
    """The tables start empty: no judge model was asked by an earlier version."""
    op.create_table(
        "judge_endpoints",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("member_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("consented_at", sa.Double()),
        sa.Column("consented_by", sa.String(100), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_judge_endpoints")),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_judge_endpoints_member_id_members")),
    )
    op.create_index("judge_endpoints_name", "judge_endpoints", ["member_id", "name"], unique=True)
    op.create_table(
        "judgements",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("member_id", sa.String(64), nullable=False),
        sa.Column("endpoint_id", sa.String(64), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("prompt_version", sa.Integer(), nullable=False),
        sa.Column("prompts", sa.Integer(), nullable=False),
        sa.Column("identical", sa.JSON(), nullable=False),
        sa.Column("max_tokens", sa.BigInteger(), nullable=False),
        sa.Column("used_tokens", sa.BigInteger(), nullable=False),
        sa.Column("reserved_tokens", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("fruitless", sa.Integer(), nullable=False),
        sa.Column("not_before", sa.Double(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("finished_at", sa.Double()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_judgements")),
        sa.ForeignKeyConstraint(["job_id"], ["evaluations.job_id"], name=op.f("fk_judgements_job_id_evaluations")),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_judgements_member_id_members")),
    )
    op.create_index(op.f("ix_judgements_job_id"), "judgements", ["job_id"])
    op.create_index(
        "judgements_one_running",
        "judgements",
        ["job_id"],
        unique=True,
        sqlite_where=_RUNNING,
        postgresql_where=_RUNNING,
    )
    op.create_table(
        "judge_answers",
        sa.Column("judgement_id", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("adapter_first", sa.Boolean(), nullable=False),
        sa.Column("verdict", sa.String(8)),
        sa.Column("failure", sa.Text(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("is_estimated", sa.Boolean(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("judgement_id", "number", "adapter_first", name=op.f("pk_judge_answers")),
        sa.ForeignKeyConstraint(
            ["judgement_id"], ["judgements.id"], name=op.f("fk_judge_answers_judgement_id_judgements")
        ),
    )
