"""A clone from a checkpoint keeps the file it begins with, whatever becomes of the original; on both databases."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from pydantic import ValidationError
from sqlalchemy import Engine, text

from orchestrator.adapters.database import tables
from orchestrator.domain.errors import ConflictError, InvalidError, NotFoundError
from orchestrator.domain.lifecycle import CheckpointState, JobState
from orchestrator.services import clones, jobs
from orchestrator.services.checkpoints import sweep
from orchestrator.services.dispatch import dispatch
from orchestrator.services.reconcile import reconcile
from orchestrator.services.worker_messages import receive
from tests.helpers.offline_world import OfflineWorld
from tests.helpers.world import Worker, World
from worker.shared.job_spec import ENCODING
from worker.shared.messages import Failure, Finish, Origin


def running(world: World) -> Worker:
    """The worker of the next session, started."""
    dispatch(world.ctx)
    (worker,) = world.new_workers()
    worker.start()
    return worker


def saves(worker: Worker, *steps: int) -> None:
    for step in steps:
        worker.step = step
        assert worker.save().committed


def without_key(world: World, engine: Engine, job_id: str, key: str) -> None:
    """Make it a job of an earlier version, whose file has no such key."""
    spec = {name: value for name, value in world.job(job_id).spec.items() if name != key}
    with engine.begin() as connection:
        connection.execute(tables.jobs.update().where(tables.jobs.c.id == job_id).values(spec=spec))


def clone(world: World, job: str, step: int, who: str = "alice", key: str | None = None, **changes: object) -> str:
    with world.ctx.uow() as tx:
        (sha256,) = [c.sha256 for c in tx.checkpoints.of_job(job) if c.step == step]
    return clones.clone(world.ctx, world.actors[who], job, changes, checkpoint=sha256, key=key).id


def stored(world: World) -> int:
    return sum(1 for path in world.store.folder.rglob("*.safetensors"))


def test_the_original_may_be_pruned_and_deleted_before_its_clone_starts(world: World, engine: Engine) -> None:
    """Guards: without `is_in_use` in `sweep` the file was gone after the third save; without the clone's own row it was
    gone with the original's rows.
    """
    job = world.submit("alice", 9, checkpoint={"keep": 1})
    original = running(world)
    saves(original, 3)
    made = clone(world, job, 3)
    assert (world.job(made).head_step, world.job(made).first_step, world.job(made).cloned_from) == (3, 3, job)
    saves(original, 6, 9)
    original.finish()
    sweep(world.ctx)
    with world.ctx.uow() as tx:
        assert [(c.step, c.state, bool(c.key)) for c in tx.checkpoints.of_job(job)] == [
            (3, "pruned", False),
            (6, "pruned", False),
            (9, "committed", True),
        ]
    reconcile(world.ctx)
    with engine.begin() as connection:
        for table in ("events", "checkpoints", "leases"):
            connection.execute(text(f"DELETE FROM {table} WHERE job_id = :job"), {"job": job})
        connection.execute(text("DELETE FROM jobs WHERE id = :job"), {"job": job})

    copy = running(world)
    assert copy.assignment is not None
    resume = copy.assignment.resume
    assert copy.assignment.origin == Origin(job=job, fence=1, step=3)
    assert resume is not None
    assert hashlib.sha256(Path(resume.path or "").read_bytes()).hexdigest() == resume.sha256
    saves(copy, 5)
    copy.release()
    sweep(world.ctx)
    assert stored(world) == 3

    again = running(world)
    assert again.assignment is not None
    assert (again.assignment.origin, again.assignment.resume_step) == (None, 5)
    saves(again, 9)
    assert stored(world) == 3, "the last that counted on the file has taken it along"
    again.finish()
    assert world.job(made).state is JobState.SUCCEEDED


def test_a_clone_of_a_clone_begins_with_the_same_file(world: World) -> None:
    job = world.submit("alice", 4, checkpoint={"keep": 1})
    worker = running(world)
    saves(worker, 2)
    first = clone(world, job, 2)
    second = clone(world, first, 2, max_steps=8)
    saves(worker, 4)
    worker.finish()
    sweep(world.ctx)
    assert stored(world) == 2
    dispatch(world.ctx)
    copies = world.new_workers()
    assert {copy.start().job for copy in copies} == {first, second}
    for copy in copies:
        assert copy.assignment is not None
        assert copy.assignment.origin == Origin(job=job, fence=1, step=2)
        saves(copy, 4)
    assert stored(world) == 4, "a session has loaded the file that they began with, and none has the new ones"


def test_a_machine_that_cannot_call_is_brought_the_file_of_the_original(engine: Engine, tmp_path: Path) -> None:
    """What Kaggle's driver stages and what a notebook's letter grants is the same resume grant, with the same
    origin."""
    world = OfflineWorld(engine, tmp_path)
    job = world.submit("alice", 4, checkpoint={"keep": 1})
    dispatch(world.ctx)
    (worker,) = world.new_workers()
    worker.start()
    worker.step = 2
    worker.save()
    world.listen(worker.lease)
    made = clone(world, job, 2)
    worker.step = 4
    worker.save()
    worker.finish()
    world.listen(worker.lease)

    dispatch(world.ctx)
    (copy,) = world.new_workers()
    request = next(each for each in world.machines.launched if each.lease_id == copy.lease)
    assert request.assignment is not None
    assert request.assignment.origin == Origin(job=job, fence=1, step=2)
    resume = request.assignment.resume
    assert resume is not None
    assert hashlib.sha256(b"".join(request.inputs[resume.key]())).hexdigest() == resume.sha256
    copy.start()
    copy.step = 4
    copy.save()
    copy.finish()
    world.listen(copy.lease)
    assert world.job(made).state is JobState.SUCCEEDED


def test_what_the_state_depends_on_may_not_change(world: World) -> None:
    """Guard: without `check_changes` each of these was queued and failed on a machine."""
    job = world.submit("alice", 6, seed=1)
    saves(running(world), 3)
    for change, pointer, words in [
        ({"lora_r": 8}, "/lora_r", "8 here, 16 in the checkpoint: the checkpoint's adapter depends on it"),
        ({"seed": 2}, "/seed", "it changes the order of rows"),
        ({"sequence_len": 64}, "/sequence_len", "it changes how rows are read"),
        ({"optimizer": "adamw_8bit"}, "/optimizer", "the state of the other optimizer"),
        ({"base_model": "other"}, "/base_model", "'other' here, 'tiny' in the checkpoint"),
        ({"max_steps": 2}, "/max_steps", "must be greater than the checkpoint's step, 3"),
    ]:
        with pytest.raises(InvalidError, match="cannot start from the checkpoint of step 3") as refused:
            clone(world, job, 3, **change)
        ((where, why),) = refused.value.problems
        assert where == pointer
        assert words in why
    changes = {"max_steps": 20, "learning_rate": 1e-5, "warmup_ratio": 0.0, "lr_scheduler": "constant", "name": "on"}
    made = world.job(clone(world, job, 3, **changes))
    assert (made.total_steps, made.spec["learning_rate"], made.name) == (20, 1e-5, "on")


def test_only_a_kept_checkpoint_of_a_job_one_may_read(world: World) -> None:
    job = world.submit("alice", 6, checkpoint={"keep": 1})
    saves(running(world), 2, 3, 4)
    with pytest.raises(ConflictError, match=r"step 2 is pruned and has no file. Available steps: 3, 4."):
        clone(world, job, 2)
    with pytest.raises(NotFoundError, match="There is no job"):
        clone(world, job, 4, who="bob")
    with pytest.raises(NotFoundError, match="has no checkpoint"):
        clones.clone(world.ctx, world.actors["alice"], job, {}, checkpoint="0" * 64)


def test_a_request_that_is_repeated_makes_one_clone(world: World) -> None:
    """Also once the checkpoint is gone; another checkpoint under the same key is another request."""
    job = world.submit("alice", 6, checkpoint={"keep": 2})
    worker = running(world)
    saves(worker, 1, 2)
    made = clone(world, job, 1, key="k")
    with pytest.raises(ConflictError, match="Idempotency-Key"):
        clone(world, job, 2, key="k")
    saves(worker, 3)
    assert clone(world, job, 1, key="k") == made


def test_both_jobs_tell_of_each_other(world: World) -> None:
    job = world.submit("alice", 6)
    saves(running(world), 3)
    before = world.job(job).updated_at
    world.clock.tick(60)
    made = clone(world, job, 3)
    with world.ctx.uow() as tx:
        here, there = ({e.kind: e.data for e in tx.events.after(0, job_id=j, limit=50)} for j in (job, made))
    assert here["job.cloned"] == {"job": made, "from_step": 3}
    assert there["job.submitted"] == {"steps": 6, "cloned_from": job, "from_step": 3}
    assert world.job(job).updated_at == before, "the original has not changed"


def test_a_clone_without_its_beginning_fails_and_never_starts_afresh(world: World) -> None:
    """Guard: with `roll_back_head` as for other jobs it went on from the start, and its owner got another run's
    adapter."""
    job = world.submit("alice", 6)
    original = running(world)
    saves(original, 3, 6)
    made = clone(world, job, 3, learning_rate=1e-5)
    original.finish()
    for attempt in range(2):
        copy = running(world)
        assert copy.assignment is not None
        resume = copy.assignment.resume
        assert resume is not None
        Path(resume.path or "").write_bytes(b"damaged")
        failure = Failure(message="does not hash", permanent=False, bad_checkpoint=resume.sha256)
        receive(world.ctx, Finish(lease=copy.lease, fence=attempt + 1, seq=9, step=3, failure=failure))
        assert (world.job(made).state, world.job(made).head_step) == (JobState.FAILED, 3)
        assert world.head(made).state is CheckpointState.CORRUPT
        jobs.retry(world.ctx, world.actors["alice"], made)


def test_a_clone_of_an_old_job_encodes_its_rows_as_the_old_job(world: World, engine: Engine) -> None:
    """Guard: without `begun` the clone's later steps read other tokens than the steps in its checkpoint."""
    job = world.submit("alice", 9)
    without_key(world, engine, job, "encoding")
    saves(running(world), 3)
    assert "encoding" not in world.job(clone(world, job, 3)).spec
    assert clones.clone(world.ctx, world.actors["alice"], job, {}).spec["encoding"] == ENCODING


def test_nested_keys_change_one_by_one(world: World) -> None:
    """Guard: without `_merged` a change of `keep` alone put `max_interval_s` back to its default, unseen."""
    job = world.submit("alice", 4, checkpoint={"keep": 3, "max_interval_s": 30}, placement={"providers": ["sim"]})

    def cloned(**changes: object) -> dict[str, object]:
        made = world.job(clones.clone(world.ctx, world.actors["alice"], job, changes).id).spec
        return made["checkpoint"] | made["placement"]

    same = {"keep": 3, "max_interval_s": 30.0, "providers": ["sim"], "accounts": [], "max_session_s": None}
    assert cloned(checkpoint={"keep": 5}) == same | {"keep": 5}
    assert cloned(checkpoint={"keep": None}, placement={"max_session_s": 60}) == same | {"keep": 2, "max_session_s": 60}
    assert cloned(checkpoint=None) == same | {"keep": 2, "max_interval_s": 600}
    with pytest.raises(ValidationError, match="kepe"):
        cloned(checkpoint={"kepe": None})
