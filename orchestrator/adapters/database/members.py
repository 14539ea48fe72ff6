"""The part of a transaction that keeps members."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, delete, select
from sqlalchemy.exc import IntegrityError

from orchestrator.adapters.database import tables
from orchestrator.adapters.database.compiled_sql import Statement
from orchestrator.adapters.database.mapper import IS_UNENDED, JOBS, MEMBERS
from orchestrator.domain.errors import ConflictError
from orchestrator.domain.model import Job, Member

_table = tables.members.c
_is_there = _table.removed_at.is_(None)
_held = Statement(
    MEMBERS.select.where(_table.id == bindparam("id"), _is_there).with_for_update(read=True, key_share=True)
)


class MemberRows:
    """See `persistence.Transaction`."""

    connection: Connection

    def member(self, member_id: str) -> Member | None:
        return MEMBERS.get(self.connection, id=member_id)

    def member_by_name(self, name: str) -> Member | None:
        found = MEMBERS.where(self.connection, _table.name == name)
        return found[0] if found else None

    def members(self) -> list[Member]:
        return MEMBERS.where(self.connection, _is_there, order=_table.created_at)

    def hold_member(self, member_id: str) -> Member | None:
        row = _held.first(self.connection, {"id": member_id})
        return None if row is None else MEMBERS.load(row)

    def lock_members(self, *member_ids: str) -> list[Member]:
        those = MEMBERS.select.where(_table.id.in_(member_ids), _is_there)
        # In one order: two admins who remove each other do not wait for each other for ever.
        return [MEMBERS.load(row) for row in self.connection.execute(those.order_by(_table.id).with_for_update())]

    def add_member(self, member: Member) -> None:
        try:
            MEMBERS.add(self.connection, member)
        except IntegrityError as error:
            raise ConflictError(f"there is already a member called {member.name}") from error

    def save_member(self, member: Member) -> None:
        MEMBERS.save(self.connection, member)

    def remove_member(self, member: Member) -> None:
        MEMBERS.save(self.connection, member)
        channels = tables.channels
        theirs = select(channels.c.id).where(channels.c.member_id == member.id)
        for gone in (
            delete(tables.tokens).where(tables.tokens.c.member_id == member.id),
            delete(tables.accounts).where(tables.accounts.c.member_id == member.id),
            delete(tables.deliveries).where(tables.deliveries.c.channel_id.in_(theirs)),
            delete(channels).where(channels.c.member_id == member.id),
        ):
            self.connection.execute(gone)

    def unended_jobs(self, member_id: str) -> list[Job]:
        return JOBS.where(self.connection, tables.jobs.c.member_id == member_id, IS_UNENDED, order=tables.jobs.c.id)
