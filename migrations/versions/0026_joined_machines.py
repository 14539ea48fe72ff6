"""Machines that join by themselves: codes for them, and the hash of an account's own token."""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"

_WITH_MAILBOX = sa.text("mailbox != ''")
_OLD = "code_hash, job_id, member_id, created_at, expires_at, used_at, lease_id, nonce, store, mailbox"


def upgrade() -> None:
    """Codes of earlier versions are those of notebooks. Their accounts have no token of their own."""
    op.add_column("accounts", sa.Column("token_hash", sa.String(64)))
    op.drop_index("accounts_one_per_member_and_provider", "accounts")
    of_one = sa.text("member_id IS NOT NULL AND token_hash IS NULL")
    op.create_index(
        "accounts_one_per_member_and_provider",
        "accounts",
        ["member_id", "provider"],
        unique=True,
        sqlite_where=of_one,
        postgresql_where=of_one,
    )
    if op.get_bind().dialect.name == "sqlite":
        _copy_claims()
        return
    op.alter_column("claims", "job_id", nullable=True)
    for column in _new_columns():
        op.add_column("claims", column)


def _new_columns() -> list[sa.Column]:
    return [
        sa.Column("provider", sa.String(32), nullable=False, server_default=""),
        sa.Column("shared", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("account_id", sa.String(64)),
    ]


def _copy_claims() -> None:
    """SQLite cannot make a column nullable."""
    op.drop_index(op.f("ix_claims_expires_at"), "claims")
    op.drop_index("claims_by_mailbox", "claims")
    op.rename_table("claims", "old_claims")
    op.create_table(
        "claims",
        sa.Column("code_hash", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(64)),
        sa.Column("member_id", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("used_at", sa.Double()),
        sa.Column("lease_id", sa.String(64)),
        sa.Column("nonce", sa.String(64)),
        sa.Column("store", sa.String(32), nullable=False),
        sa.Column("mailbox", sa.String(100), nullable=False),
        *_new_columns(),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_claims_job_id_jobs")),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_claims_member_id_members")),
        sa.PrimaryKeyConstraint("code_hash", name=op.f("pk_claims")),
    )
    op.execute(f"INSERT INTO claims ({_OLD}) SELECT {_OLD} FROM old_claims")  # noqa: S608  names of columns
    op.drop_table("old_claims")
    op.create_index(op.f("ix_claims_expires_at"), "claims", ["expires_at"])
    op.create_index(
        "claims_by_mailbox", "claims", ["mailbox"], sqlite_where=_WITH_MAILBOX, postgresql_where=_WITH_MAILBOX
    )
