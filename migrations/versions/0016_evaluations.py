"""Evaluations with their answers, and the blind comparisons of these with their raters and votes."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"

_OPEN = sa.text("closed_at IS NULL")


def upgrade() -> None:
    """The tables start empty: no job of an earlier version is an evaluation."""
    _add_evaluations()
    _add_comparisons()


def _add_evaluations() -> None:
    op.create_table(
        "evaluations",
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("trained_job", sa.String(64), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("checkpoint_sha256", sa.String(64), nullable=False),
        sa.Column("adapter_sha256", sa.String(64)),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("answers_sha256", sa.String(64)),
        sa.Column("report", sa.JSON()),
        sa.Column("finished_at", sa.Double()),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_evaluations")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_evaluations_job_id_jobs")),
        sa.ForeignKeyConstraint(["trained_job"], ["jobs.id"], name=op.f("fk_evaluations_trained_job_jobs")),
        sa.ForeignKeyConstraint(["owner"], ["members.id"], name=op.f("fk_evaluations_owner_members")),
    )
    op.create_index(op.f("ix_evaluations_trained_job"), "evaluations", ["trained_job"])
    op.create_table(
        "evaluation_answers",
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("prompt", sa.JSON(), nullable=False),
        sa.Column("base", sa.Text(), nullable=False),
        sa.Column("adapter", sa.Text(), nullable=False),
        sa.Column("base_truncated", sa.Boolean(), nullable=False),
        sa.Column("adapter_truncated", sa.Boolean(), nullable=False),
        sa.Column("base_tokens", sa.Integer(), nullable=False),
        sa.Column("adapter_tokens", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_evaluation_answers")),
        sa.ForeignKeyConstraint(
            ["job_id"], ["evaluations.job_id"], name=op.f("fk_evaluation_answers_job_id_evaluations")
        ),
    )


def _add_comparisons() -> None:
    op.create_table(
        "comparisons",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("member_id", sa.String(64), nullable=False),
        sa.Column("question", sa.Text(), nullable=False),
        sa.Column("plan", sa.String(16), nullable=False),
        sa.Column("margin", sa.Double()),
        sa.Column("margin_prompts", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("prompts", sa.Integer(), nullable=False),
        sa.Column("identical", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("closed_at", sa.Double()),
        sa.Column("ending", sa.String(32)),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_comparisons")),
        sa.ForeignKeyConstraint(["job_id"], ["evaluations.job_id"], name=op.f("fk_comparisons_job_id_evaluations")),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_comparisons_member_id_members")),
    )
    op.create_index(op.f("ix_comparisons_job_id"), "comparisons", ["job_id"])
    op.create_index(
        "comparisons_one_open", "comparisons", ["job_id"], unique=True, sqlite_where=_OPEN, postgresql_where=_OPEN
    )
    op.create_table(
        "raters",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("comparison_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("link_hash", sa.String(64)),
        sa.Column("cookie_hash", sa.String(64)),
        sa.Column("opened_at", sa.Double()),
        sa.Column("revoked_at", sa.Double()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_raters")),
        sa.UniqueConstraint("link_hash", name=op.f("uq_raters_link_hash")),
        sa.ForeignKeyConstraint(
            ["comparison_id"], ["comparisons.id"], name=op.f("fk_raters_comparison_id_comparisons")
        ),
    )
    op.create_index(op.f("ix_raters_comparison_id"), "raters", ["comparison_id"])
    op.create_table(
        "votes",
        sa.Column("comparison_id", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("rater_id", sa.String(64), nullable=False),
        sa.Column("choice", sa.String(8), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("comparison_id", "number", "rater_id", name=op.f("pk_votes")),
        sa.ForeignKeyConstraint(["comparison_id"], ["comparisons.id"], name=op.f("fk_votes_comparison_id_comparisons")),
        sa.ForeignKeyConstraint(["rater_id"], ["raters.id"], name=op.f("fk_votes_rater_id_raters")),
    )
