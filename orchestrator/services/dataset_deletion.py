"""Removing a data file: from one of those who brought it, and its bytes with the last of them."""

from __future__ import annotations

from orchestrator.domain.errors import ConflictError, NotFoundError
from orchestrator.ports.providers import Context, StoreError
from orchestrator.ports.repository import Transaction
from orchestrator.services.jobs import Actor

AT_ONCE = 100


def delete_dataset(ctx: Context, actor: Actor, sha256: str, member: str | None = None) -> None:
    """Remove a data file of the actor's or, for admins, of another member's (name or id).

    Its bytes go once nobody who brought them has them any more. Jobs that have ended do not keep it: they cannot be retried or
    cloned before somebody brings the same bytes again. Raises `ConflictError` while a job that has not ended needs them: one
    of the member's own or, before the bytes go, anybody's.
    """
    with ctx.uow() as tx:
        owner = _owner(tx, actor, member)
        dataset = tx.lock_dataset(sha256)
        brought_by = tx.uploaders(sha256)
        if dataset is None or owner not in brought_by:
            raise NotFoundError(f"there is no dataset {sha256}")
        is_last = brought_by == {owner}
        _refuse_while_needed(tx, actor, sha256, None if is_last else owner)
        tx.remove_upload(sha256, owner)
        if is_last:
            tx.delete_dataset(dataset)
    sweep_discarded(ctx)


def _owner(tx: Transaction, actor: Actor, member: str | None) -> str:
    if member is None:
        return actor.member_id
    found = tx.member(member) or tx.member_by_name(member)
    if found is None or not actor.may_see(found.id):
        raise NotFoundError(f"there is no member {member}")
    return found.id


def _refuse_while_needed(tx: Transaction, actor: Actor, sha256: str, member_id: str | None) -> None:
    job = tx.job_that_needs(sha256, member_id)
    if job is None:
        return
    if not actor.may_see(job.member_id):
        raise ConflictError("a job of another member reads this file: it can be deleted once that job has ended")
    raise ConflictError(
        f"job {job.name} ({job.id}) is {job.state} and reads this file: wait until it has ended, or cancel it first"
    )


def sweep_discarded(ctx: Context) -> None:
    """Delete what deletions have left to do; a store that does not answer is asked again in the next round."""
    with ctx.uow() as tx:
        found = {
            key: [c.name for c in tx.store_configs() if tx.store_object(c.name, key)] for key in tx.discarded(AT_ONCE)
        }
    for key, copies in found.items():
        try:
            for store in (ctx.stores.local(), *map(ctx.stores.get, copies)):  # for notebooks they were copied
                store.delete(key)
        except StoreError:
            continue
        with ctx.uow() as tx:
            tx.forget_discarded(key)
