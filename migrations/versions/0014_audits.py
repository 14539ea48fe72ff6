"""Audits of datasets: their settings, the units of the sample, and the labels of people."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """The tables start empty: no dataset of an earlier version is audited."""
    op.create_table(
        "audits",
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("member_id", sa.String(64), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("strata_kind", sa.String(16), nullable=False),
        sa.Column("strata", sa.JSON(), nullable=False),
        sa.Column("max_wrong", sa.Double()),
        sa.Column("row_format", sa.String(32), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_audits")),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_audits_member_id_members")),
    )
    op.create_table(
        "audit_units",
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("row", sa.Integer(), nullable=False),
        sa.Column("turn", sa.Integer(), nullable=False),
        sa.Column("stratum", sa.String(200), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", "place", name=op.f("pk_audit_units")),
        sa.ForeignKeyConstraint(["sha256"], ["audits.sha256"], name=op.f("fk_audit_units_sha256_audits")),
    )
    op.create_table(
        "audit_labels",
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("member_id", sa.String(64), nullable=False),
        sa.Column("label", sa.String(16), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", "place", "member_id", name=op.f("pk_audit_labels")),
        sa.ForeignKeyConstraint(["sha256"], ["audits.sha256"], name=op.f("fk_audit_labels_sha256_audits")),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_audit_labels_member_id_members")),
    )
