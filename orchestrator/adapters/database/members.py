"""The repository of members."""

from __future__ import annotations

from sqlalchemy import bindparam, delete, select
from sqlalchemy.exc import IntegrityError

from orchestrator.adapters.database import tables
from orchestrator.adapters.database.comparisons import revoke_raters
from orchestrator.adapters.database.compiled_sql import Statement
from orchestrator.adapters.database.judgements import remove_endpoints
from orchestrator.adapters.database.mapper import Mapper
from orchestrator.adapters.database.pushes import end_pushes
from orchestrator.adapters.database.repository import SqlRepository
from orchestrator.adapters.database.shares import revoke_shares
from orchestrator.adapters.database.tracking import remove_logins
from orchestrator.domain.accounts import Member, Role
from orchestrator.domain.errors import ConflictError

MEMBERS = Mapper(Member, tables.members, enums={"role": Role})
_members = tables.members.c
_is_there = _members.removed_at.is_(None)
_get_for_share = Statement(
    MEMBERS.select.where(_members.id == bindparam("id"), _is_there).with_for_update(read=True, key_share=True)
)


class SqlMemberRepository(SqlRepository):
    """Implements `ports.repository.accounts.MemberRepository`."""

    def get(self, member_id: str) -> Member | None:
        return MEMBERS.get(self._connection, id=member_id)

    def get_by_name(self, name: str) -> Member | None:
        found = MEMBERS.where(self._connection, _members.name == name)
        return found[0] if found else None

    def get_for_share(self, member_id: str) -> Member | None:
        row = _get_for_share.first(self._connection, {"id": member_id})
        return None if row is None else MEMBERS.load(row)

    def get_for_update(self, *member_ids: str) -> list[Member]:
        statement = MEMBERS.select.where(_members.id.in_(member_ids), _is_there)
        # Lock in one order, so that two admins who remove each other cannot deadlock.
        rows = self._connection.execute(statement.order_by(_members.id).with_for_update())
        return [MEMBERS.load(row) for row in rows]

    def all(self) -> list[Member]:
        return MEMBERS.where(self._connection, _is_there, order=_members.created_at)

    def add(self, member: Member) -> None:
        try:
            MEMBERS.add(self._connection, member)
        except IntegrityError as error:
            raise ConflictError(f"There is already a member named {member.name}. Choose another name.") from error

    def save(self, member: Member) -> None:
        MEMBERS.save(self._connection, member)

    def remove(self, member: Member) -> None:
        self.save(member)
        channels = tables.channels
        theirs = select(channels.c.id).where(channels.c.member_id == member.id)
        for statement in (
            delete(tables.tokens).where(tables.tokens.c.member_id == member.id),
            delete(tables.accounts).where(tables.accounts.c.member_id == member.id),
            delete(tables.deliveries).where(tables.deliveries.c.channel_id.in_(theirs)),
            delete(channels).where(channels.c.member_id == member.id),
        ):
            self._connection.execute(statement)
        remove_endpoints(self._connection, member.id)
        end_pushes(self._connection, member.id)
        remove_logins(self._connection, member.id, member.removed_at)
        revoke_raters(self._connection, member.id, member.removed_at)
        revoke_shares(self._connection, member.id, member.removed_at)
