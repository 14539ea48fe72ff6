"""Deleting a data file: nobody loses what they brought, and no job that has not ended loses what it reads."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text

from orchestrator.adapters.stores.local import LocalStore
from orchestrator.domain.errors import ConflictError, InvalidError, NotFoundError
from orchestrator.domain.storage import Dataset, StoreConfig
from orchestrator.ports.stores import StoreUnavailable
from orchestrator.services import clones, jobs
from orchestrator.services.datasets import add_dataset, dataset_by_id, delete_dataset
from orchestrator.services.dispatch import dispatch
from orchestrator.services.reconcile import reconcile
from orchestrator.testing import FixedStores
from orchestrator.testing.environments import store_env
from tests.helpers.world import World
from tests.services.test_deletion import finish
from worker.shared.job_spec import JobSpec

ROWS = b'{"text": "a"}\n' * 40


def bring(world: World, who: str = "alice") -> Dataset:
    """The same rows every time; the world's jobs read them from now on."""
    file = world.folder / f"{who}.jsonl"
    file.write_bytes(ROWS)
    made = add_dataset(world.ctx, who, file, file.name)
    world.dataset = made.sha256
    return made


def delete(world: World, who: str = "alice") -> None:
    delete_dataset(world.ctx, world.actors[who], world.dataset)


def files(world: World) -> int:
    """How often the rows lie in the store."""
    folder = world.store.folder / "datasets"
    return sum(path.read_bytes() == ROWS for path in folder.iterdir() if path.is_file())


def ready(world: World, who: str = "alice") -> jobs.Ready:
    """A job that is looked up and not yet queued."""
    spec = {"base_model": "tiny", "datasets": [{"path": f"sha256:{world.dataset}"}], "max_steps": 4}
    found = jobs.prepare(world.ctx, world.actors[who], JobSpec.model_validate(spec))
    assert isinstance(found, jobs.Ready)
    return found


def test_a_file_that_nobody_needs_is_gone_with_its_bytes(world: World) -> None:
    """Guard: without `sweep_discarded` in `delete_dataset` the bytes stayed until the next round."""
    bring(world)
    assert files(world) == 1
    delete(world)
    assert files(world) == 0
    with pytest.raises(NotFoundError):
        delete(world)
    with pytest.raises(InvalidError, match="Upload the file first"):
        world.submit("alice")


def test_of_two_who_brought_the_same_one_keeps_it(world: World) -> None:
    """Guards: without `add_upload` where the bytes were known already Bob had nothing to delete; without `is_last` his
    deletion took Alice's file.
    """
    bring(world, "alice")
    bring(world, "bob")
    delete(world, "bob")
    with pytest.raises(NotFoundError):
        delete(world, "bob")
    assert files(world) == 1
    job = world.submit("alice")
    finish(world)
    assert world.job(job).head_step == 4
    delete(world, "alice")
    assert files(world) == 0


def test_a_job_that_has_not_ended_keeps_its_file(world: World) -> None:
    """Guard: without `_refuse_while_needed` each of these jobs would have failed on its next machine."""
    bring(world)
    job, alice = world.submit("alice"), world.actors["alice"]

    def refused(state: str) -> None:
        with pytest.raises(ConflictError, match=rf"{job}\) is {state} and uses this file"):
            delete(world)

    refused("queued")
    jobs.pause(world.ctx, alice, job)
    refused("paused")
    jobs.resume(world.ctx, alice, job)
    dispatch(world.ctx)
    refused("starting")
    (worker,) = world.new_workers()
    worker.start()
    refused("running")
    worker.fail(permanent=True)
    assert files(world) == 1
    delete(world)
    assert files(world) == 0


def test_a_hash_gives_no_right_to_the_rows(world: World) -> None:
    """Every model card prints it. Guards: with `get` instead of `get_of` in `_uploaded` Bob trained on Alice's rows, in
    `dataset_by_id` he read them, and his queued job kept her from deleting them."""
    bring(world)
    with pytest.raises(InvalidError) as refused:
        world.submit("bob")
    with pytest.raises(NotFoundError) as unseen:
        dataset_by_id(world.ctx, world.actors["bob"], world.dataset)
    delete(world)
    with pytest.raises(InvalidError) as gone:
        world.submit("bob")
    with pytest.raises(NotFoundError) as nothing:
        dataset_by_id(world.ctx, world.actors["bob"], world.dataset)
    assert (str(refused.value), refused.value.problems) == (str(gone.value), gone.value.problems)
    assert str(unseen.value) == str(nothing.value)


def test_bytes_of_ones_own_give_the_right_and_ones_own_name(world: World) -> None:
    """Guard: with the first upload's name in the answer Bob learnt what Alice calls her file."""
    bring(world, "alice")
    assert bring(world, "bob").name == "bob.jsonl"
    mine = dataset_by_id(world.ctx, world.actors["bob"], world.dataset)
    assert (mine.name, mine.member_id) == ("bob.jsonl", "bob")
    job = world.submit("bob")
    delete(world, "alice")
    with pytest.raises(ConflictError, match=rf"{job}\) is queued and uses"):
        delete(world, "bob")
    assert files(world) == 1


def test_a_job_queued_by_a_stranger_does_not_keep_the_file(world: World, engine: Engine) -> None:
    """Such a job may be left from before. Guard: with any job asked for the owner waited for it."""
    bring(world, "alice")
    bring(world, "bob")
    world.submit("bob")
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM uploads WHERE member_id = 'bob'"))
    delete(world, "alice")
    assert files(world) == 0


@pytest.mark.parametrize("again", [clones.clone, jobs.retry])
def test_ones_own_job_goes_on_with_its_rows_while_others_have_them(world: World, again: Callable[..., object]) -> None:
    """Guard: without `given` the clone was refused; without the upload in `hold` the file was deleted under it."""
    bring(world, "alice")
    bring(world, "bob")
    job, alice = world.submit("alice"), world.actors["alice"]
    jobs.cancel(world.ctx, alice, job)
    delete(world, "alice")
    again(world.ctx, alice, job, *([{}] if again is clones.clone else []))
    delete(world, "bob")
    assert files(world) == 1
    with pytest.raises(ConflictError, match="is queued and uses"):
        delete(world, "alice")


def test_a_job_that_has_ended_goes_on_once_its_file_is_brought_again(world: World) -> None:
    """Guard: without `hold` in `retry` the job was queued for machines that would find no data."""
    bring(world)
    job, alice = world.submit("alice"), world.actors["alice"]
    jobs.cancel(world.ctx, alice, job)
    delete(world)
    with pytest.raises(ConflictError, match=r"was deleted\. Upload it again"):
        jobs.retry(world.ctx, alice, job)
    with pytest.raises(InvalidError, match="Upload the file first"):
        clones.clone(world.ctx, alice, job, {})
    bring(world)
    jobs.retry(world.ctx, alice, job)
    finish(world)
    assert world.job(job).head_step == 4


def test_a_submit_that_comes_after_the_deletion_is_refused(world: World) -> None:
    """Guard: without `hold` in `queue` a job was queued whose data had been deleted since it was looked up."""
    bring(world)
    late = ready(world)
    delete(world)
    with pytest.raises(InvalidError, match="was deleted") as refused, world.ctx.uow() as tx:
        jobs.queue(world.ctx, tx, world.actors["alice"], late)
    assert refused.value.problems[0][0] == "/datasets/0/path"


def meanwhile(engine: Engine, work: Callable[[], None]) -> threading.Thread:
    """A thread that has done this or waits for somebody's lock; on SQLite it waits for its turn in any case."""
    thread = threading.Thread(target=work)
    thread.start()
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    while engine.dialect.name == "postgresql" and thread.is_alive():
        with engine.connect() as connection:
            if connection.execute(waiting).scalar_one():
                break
    return thread


def test_a_deletion_waits_for_the_submit_that_is_under_way(world: World, engine: Engine) -> None:
    """Guard: with a plain read in `datasets.get_for_share` the deletion saw no job on PostgreSQL, and the job had no
    data."""
    bring(world)
    said: list[str] = []

    def deleting() -> None:
        try:
            delete(world)
        except ConflictError as error:
            said.append(str(error))

    late = ready(world)
    with world.ctx.uow() as tx:
        jobs.queue(world.ctx, tx, world.actors["alice"], late)
        thread = meanwhile(engine, deleting)
    thread.join()
    assert said
    assert "is queued and uses this file" in said[0]
    assert files(world) == 1


def test_bytes_that_are_brought_again_while_they_are_deleted_stay(world: World) -> None:
    """Guard: with one key for the same bytes the deletion, late, took the file that had just been brought."""
    bring(world)

    def late(_: str) -> None:
        world.store.before.clear()
        bring(world)

    world.store.before["delete"] = late
    delete(world)
    assert files(world) == 1
    world.submit("alice")
    finish(world)


def test_the_same_bytes_at_the_same_time_are_kept_once(world: World) -> None:
    """Guard: without `discard` in `add_dataset` the second copy lay in the store for ever."""

    def slow(*_: object) -> None:
        world.store.before.clear()
        bring(world, "bob")

    world.store.before["put"] = slow
    bring(world, "alice")
    assert files(world) == 2
    reconcile(world.ctx)
    assert files(world) == 1
    for who in ("alice", "bob"):
        delete(world, who)
    assert files(world) == 0


def test_what_a_deletion_left_undone_is_done_by_the_next_round(world: World) -> None:
    """Guard: without `sweep_discarded` in `reconcile` the file stayed for ever."""
    bring(world)

    def away(key: str) -> None:
        raise StoreUnavailable(f"no answer for {key}")

    world.store.before["delete"] = away
    delete(world)
    world.store.before.clear()
    assert files(world) == 1
    reconcile(world.ctx)
    assert files(world) == 0


def test_a_copy_that_a_notebook_was_given_goes_too(world: World) -> None:
    """Guard: without `copies` in `sweep_discarded` the rows lay in somebody's Drive for ever."""
    key = bring(world).key
    drive = LocalStore(store_env(world.folder / "drive"))
    drive.name = "drive"
    drive.put(key, world.store.path(key))
    with world.ctx.uow() as tx:
        tx.stores.put(StoreConfig(name="drive", config={}, created_at=0.0))
        tx.store_objects.get_or_add("drive", key, "id")
    world.ctx = dataclasses.replace(world.ctx, stores=FixedStores(world.store, drive))
    delete(world)
    assert not drive.path(key).exists()
