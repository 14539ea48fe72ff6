"""Deleting a job that has ended: everything goes that it alone has made, and nothing that another one counts on."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from orchestrator.domain.errors import ConflictError, NotFoundError
from orchestrator.ports.stores import StoreUnavailable
from orchestrator.services import clones, jobs
from orchestrator.services.dispatch import dispatch
from orchestrator.services.reconcile import reconcile
from tests.helpers.world import Worker, World
from worker.shared.job_spec import JobSpec


def trained(world: World, steps: int = 4) -> str:
    """A job of alice's that is done, with its machine cleared up."""
    job = world.submit("alice", steps)
    finish(world)
    return job


def finish(world: World) -> Worker:
    dispatch(world.ctx)
    (worker,) = world.new_workers()
    spec = worker.start().spec
    worker.step = spec.total_steps
    worker.report()
    worker.save()
    worker.finish()
    reconcile(world.ctx)
    return worker


def files(world: World) -> int:
    return sum(path.is_file() and "job-" in str(path) for path in world.store.folder.rglob("*"))


def delete(world: World, job: str, who: str = "alice") -> None:
    jobs.delete(world.ctx, world.actors[who], job)


def rows(engine: Engine, table: str, job: str) -> int:
    with engine.begin() as connection:
        asked = text(f"SELECT count(*) FROM {table} WHERE job_id = :job")
        return connection.execute(asked, {"job": job}).scalar_one()


def test_files_curves_and_the_job_itself_are_gone_and_its_hours_stay(world: World, engine: Engine) -> None:
    """Guards: without `sweep` the checkpoint stayed, without `_delete_adapter` the adapter, without
    `jobs.delete_records` the metrics, without the condition in `owned` the job could still be cloned.
    """
    job = trained(world)
    assert files(world) == 2
    assert rows(engine, "metrics", job) > 0
    delete(world, job)
    assert files(world) == 0
    assert rows(engine, "metrics", job) == 0
    assert rows(engine, "leases", job) == 1
    with pytest.raises(NotFoundError):
        delete(world, job)
    with pytest.raises(NotFoundError):
        clones.clone(world.ctx, world.actors["alice"], job, {})
    with world.ctx.uow() as tx:
        assert tx.stores.count_kept(world.store.name) == 0


def test_a_clone_keeps_the_checkpoint_it_began_with(world: World) -> None:
    """Guard: without `is_in_use` in `sweep` the clone found nothing to begin with."""
    job = trained(world)
    head = world.job(job).head
    spec = {"max_steps": 6}
    made = clones.clone(world.ctx, world.actors["alice"], job, spec, checkpoint=head).id
    delete(world, job)
    assert files(world) == 1
    finish(world)
    assert world.job(made).head_step == 6
    delete(world, made)
    assert files(world) == 0


def test_a_job_that_may_still_be_needed_is_kept(world: World) -> None:
    """Guards: without `is_final` a running job lost its checkpoints; without the look at `collected_at` what its
    machine left was cleared up for a job that nobody has.
    """
    job = world.submit("alice", 4)
    with pytest.raises(ConflictError, match="Cancel it"):
        delete(world, job)
    dispatch(world.ctx)
    (worker,) = world.new_workers()
    worker.start()
    with pytest.raises(ConflictError, match="Cancel it"):
        delete(world, job)
    worker.fail(permanent=True)
    with pytest.raises(ConflictError, match="cleaned up"):
        delete(world, job)
    reconcile(world.ctx)
    with pytest.raises(NotFoundError):
        delete(world, job, "bob")
    delete(world, job)


def test_what_a_store_does_not_delete_is_deleted_when_it_answers(world: World) -> None:
    """Guard: without `discard` in `delete` the adapter lay in the store for ever."""
    job = trained(world)

    def away(key: str) -> None:
        raise StoreUnavailable(f"no answer for {key}")

    world.store.before["delete"] = away
    delete(world, job)
    assert files(world) > 0
    world.store.before.clear()
    reconcile(world.ctx)
    assert files(world) == 0


def test_no_file_is_deleted_while_its_job_can_be_promoted(world: World) -> None:
    """Guard: deleted before its job was, the adapter of a job that was promoted meanwhile was gone."""
    job, hidden = trained(world), list[bool]()
    world.store.before["delete"] = lambda _: hidden.append(world.job(job).deleted_at is not None)
    delete(world, job)
    assert hidden
    assert all(hidden)


def test_the_same_request_again_is_told_that_its_job_was_deleted(world: World) -> None:
    """Guard: without the look at `deleted_at` in `_earlier` the answer was a job that nobody finds."""
    spec = {
        "base_model": "tiny",
        "datasets": [{"path": f"sha256:{world.dataset}", "file_format": "jsonl"}],
        "max_steps": 4,
    }
    asked = JobSpec.model_validate(spec)
    job = jobs.submit(world.ctx, world.actors["alice"], asked, key="once").job
    jobs.cancel(world.ctx, world.actors["alice"], job.id)
    delete(world, job.id)
    with pytest.raises(ConflictError, match="was deleted"):
        jobs.submit(world.ctx, world.actors["alice"], asked, key="once")
