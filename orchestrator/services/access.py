"""Permissions: admins may do everything, members may use what is their own."""

from __future__ import annotations

from orchestrator.domain.accounts import Actor, Member, Role
from orchestrator.domain.errors import ForbiddenError, NotFoundError
from orchestrator.ports.repository import Transaction


def require_admin(actor: Actor) -> None:
    """Raise `ForbiddenError` unless the actor is an admin."""
    if actor.role is not Role.ADMIN:
        raise ForbiddenError("Only an admin can do this. Ask an admin.")


def find_member(tx: Transaction, name_or_id: str) -> Member:
    """A member by id or name, locked in the transaction. Raises `NotFoundError`."""
    member = tx.members.get(name_or_id) or tx.members.get_by_name(name_or_id)
    held = tx.members.get_for_share(member.id) if member is not None else None
    if held is None:
        raise NotFoundError(f"There is no member {name_or_id}. List them with `trainhop members ls`.")
    return held


def find_served_member(tx: Transaction, actor: Actor, name_or_id: str, refusal: str) -> Member:
    """A member for whom the actor may act: the actor, or for an admin any member.

    For others it raises `ForbiddenError` with the words of `refusal`, which do not reveal which members there are.
    """
    if actor.role is not Role.ADMIN and name_or_id not in (actor.member_id, actor.name):
        raise ForbiddenError(refusal)
    return find_member(tx, name_or_id)
