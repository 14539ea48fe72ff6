"""Removing a person: nothing lets them in any more, nothing of theirs is left running, and no job is lost."""

from __future__ import annotations

import dataclasses

import pytest
from sqlalchemy import Engine, text

from orchestrator.domain.accounts import Actor, Member, Role
from orchestrator.domain.errors import ConflictError, ForbiddenError, NotFoundError
from orchestrator.entrypoints.http.logins import Logins
from orchestrator.services import clones, jobs, members, notebooks
from orchestrator.services.dispatch import dispatch
from orchestrator.services.members import remove_member
from orchestrator.services.reconcile import reconcile
from tests.helpers.world import World
from tests.services.test_dataset_deletion import meanwhile, ready
from tests.services.test_deletion import trained
from worker.shared.manifest import Hardware
from worker.shared.notebook_messages import ClaimRequest
from worker.shared.wire import PROTOCOL_VERSION


def admin(world: World, name: str = "root") -> Actor:
    with world.ctx.uow() as tx:
        tx.members.add(Member(id=f"member-{name}", name=name, role=Role.ADMIN, created_at=world.clock.now()))
    return Actor(member_id=f"member-{name}", name=name, role=Role.ADMIN)


def left(engine: Engine, table: str) -> int:
    with engine.begin() as connection:
        return connection.execute(text(f"SELECT count(*) FROM {table} WHERE member_id = 'alice'")).scalar_one()


def test_what_let_them_in_is_gone_and_their_jobs_stay(world: World, engine: Engine) -> None:
    """Guards: without its line in `remove_member` the tokens or accounts stayed; with the row deleted, too, the job had
    no owner; without the parting name nobody else could be called so.
    """
    root, job = admin(world), trained(world)
    members.add_token(world.ctx, root, member="alice", name="laptop", days=None)
    remove_member(world.ctx, root, "alice")
    assert (left(engine, "tokens"), left(engine, "accounts"), left(engine, "jobs")) == (0, 0, 1)
    assert world.job(job).adapter_key
    with world.ctx.uow() as tx:
        gone = tx.members.get("alice")
        assert gone is not None
        assert (gone.name, gone.removed_at) == ("alice (removed)", world.clock.now())
        assert [m.name for m in tx.members.all()] == ["bob", "root"]
    again = members.add_member(world.ctx, root, "alice", Role.MEMBER)
    remove_member(world.ctx, root, again.id)
    with world.ctx.uow() as tx:
        assert tx.members.get_by_name("alice (removed 2)") is not None
    for name in ("alice", "alice (removed)"):
        with pytest.raises(NotFoundError):
            remove_member(world.ctx, root, name)
        with pytest.raises(NotFoundError):
            members.add_token(world.ctx, root, member=name, name="laptop", days=None)


def test_whose_jobs_have_not_ended_stays(world: World) -> None:
    """Guards: without `jobs.unended` a job ran on for nobody; without the look at machines that are not cleared up the
    account was gone by which its machine could have been ended.
    """
    root = admin(world)
    job = world.submit("alice")
    world.clock.tick(1.0)
    more = [world.submit("alice") for _ in range(3)]
    with pytest.raises(
        ConflictError,
        match=rf"alice has unfinished jobs.* Cancel them first, or wait until they end: .*{job}.*, \.\.\.$",
    ):
        remove_member(world.ctx, root, "alice")
    for one in more:
        jobs.cancel(world.ctx, root, one)
    jobs.pause(world.ctx, root, job)
    with pytest.raises(ConflictError, match="Cancel them first"):
        remove_member(world.ctx, root, "alice")
    jobs.resume(world.ctx, root, job)
    dispatch(world.ctx)
    (worker,) = world.new_workers()
    worker.start()
    worker.fail(permanent=True)
    with pytest.raises(ConflictError, match="A session on alice's is still being cleaned up"):
        remove_member(world.ctx, root, "alice")
    reconcile(world.ctx)
    remove_member(world.ctx, root, "alice")


def test_there_always_is_an_admin(world: World) -> None:
    """Guards: without the first refusal the only admin removed herself; without the second two removed each other."""
    root, other = admin(world), admin(world, "other")
    with pytest.raises(ConflictError, match="You cannot remove yourself"):
        remove_member(world.ctx, root, "root")
    with pytest.raises(ForbiddenError):
        remove_member(world.ctx, world.actors["bob"], "alice")
    remove_member(world.ctx, other, "root")
    with pytest.raises(ForbiddenError):
        remove_member(world.ctx, root, "other")


def test_a_job_that_comes_after_its_owner_has_gone_is_refused(world: World) -> None:
    """Guard: without `members.get_for_share` in `queue` a request that was under way left a job of somebody who is
    gone."""
    late = ready(world)
    remove_member(world.ctx, admin(world), "alice")
    with pytest.raises(ForbiddenError, match="no longer a member"), world.ctx.uow() as tx:
        jobs.queue(world.ctx, tx, world.actors["alice"], late)


def test_a_removal_waits_for_the_submit_that_is_under_way(world: World, engine: Engine) -> None:
    """Guard: with a plain read in `members.get_for_share` the removal saw no job on PostgreSQL."""
    root, late, said = admin(world), ready(world), list[str]()

    def removing() -> None:
        try:
            remove_member(world.ctx, root, "alice")
        except ConflictError as error:
            said.append(str(error))

    with world.ctx.uow() as tx:
        held = tx.members.get_for_share("alice")
        thread = meanwhile(engine, removing)
        jobs.queue(world.ctx, tx, world.actors["alice"], late)
    thread.join()
    assert held is not None
    assert said
    assert "Cancel them first" in said[0]


def test_a_job_of_somebody_who_is_gone_is_cloned_and_not_retried(world: World) -> None:
    """Guard: without `members.get_for_share` in `retry` it ran again, for nobody."""
    root, job = admin(world), world.submit("alice")
    jobs.cancel(world.ctx, root, job)
    remove_member(world.ctx, root, "alice")
    with pytest.raises(ConflictError, match="Clone the job instead"):
        jobs.retry(world.ctx, root, job)
    assert clones.clone(world.ctx, root, job, {}).member_id == root.member_id


def test_links_and_codes_made_before_are_worth_nothing(world: World) -> None:
    """Guards: without `members.get_for_share` in `Logins.use` the link let a browser in for 30 days; without it in
    `_account` a notebook brought the account back.
    """
    world.machines.capabilities = dataclasses.replace(world.machines.capabilities, notebooks=True)
    root, alice, logins = admin(world), world.actors["alice"], Logins(world.ctx)
    link = logins.link(alice)
    job = world.submit("alice")
    code, _ = notebooks.make_code(world.ctx, alice, job)
    jobs.cancel(world.ctx, alice, job)
    remove_member(world.ctx, root, "alice")
    assert logins.use(link.removeprefix("/login/")) is None
    asked = ClaimRequest(protocol=PROTOCOL_VERSION, code=code, nonce="n" * 16, hardware=Hardware())
    with pytest.raises(NotFoundError, match="was removed"):
        notebooks.claim(world.ctx, asked)
