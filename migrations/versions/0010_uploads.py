"""The uploaders of each data file and its store.

If two members uploaded the same bytes, each can remove their own upload.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Earlier versions recorded only the first uploader of a file.

    Owners of jobs with the same bytes are recorded as uploaders, too.
    """
    op.add_column("datasets", sa.Column("key", sa.String(255), nullable=False, server_default=""))
    op.execute("UPDATE datasets SET key = 'datasets/' || sha256")
    op.create_table(
        "discarded",
        sa.Column("key", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_discarded")),
    )
    uploads = op.create_table(
        "uploads",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("member_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["sha256"], ["datasets.sha256"], name=op.f("fk_uploads_sha256_datasets")),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_uploads_member_id_members")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
    )
    op.create_index("uploads_once", "uploads", ["sha256", "member_id"], unique=True)
    op.create_index("uploads_by_member", "uploads", ["member_id", "id"])
    _fill(op.get_bind(), uploads)


def _fill(connection: sa.Connection, uploads: sa.Table) -> None:
    known = sa.table("datasets", *map(sa.column, ("sha256", "member_id", "name", "created_at")))
    jobs = sa.table("jobs", sa.column("member_id"), sa.column("spec", sa.JSON), sa.column("deleted_at"))
    members = {row[0] for row in connection.execute(sa.text("SELECT id FROM members"))}
    files = {row.sha256: row for row in connection.execute(sa.select(known).order_by(known.c.created_at))}
    brought = {(f.sha256, f.member_id): f for f in files.values() if f.member_id in members}
    for member, spec in connection.execute(sa.select(jobs.c.member_id, jobs.c.spec).where(jobs.c.deleted_at.is_(None))):
        for entry in spec.get("datasets", ()):
            file = files.get(entry.get("sha256"))
            if file is not None:
                brought.setdefault((file.sha256, member), file)
    rows = [
        # Sorts before every id that the server creates.
        {"id": f"upload-00{n:014d}", "sha256": sha256, "member_id": member, "name": f.name, "created_at": f.created_at}
        for n, ((sha256, member), f) in enumerate(sorted(brought.items(), key=lambda pair: pair[1].created_at))
    ]
    if rows:
        connection.execute(sa.insert(uploads), rows)
