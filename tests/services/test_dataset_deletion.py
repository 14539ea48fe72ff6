"""Deleting a data file: nobody loses what they brought, and no job that has not ended loses what it reads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from orchestrator.adapters.stores.local import LocalStore
from orchestrator.domain.errors import ConflictError, InvalidError, NotFoundError
from orchestrator.ports.providers import ObjectInfo, StoreUnavailable
from orchestrator.ports.repository import Dataset, StoreConfig
from orchestrator.services import clones, jobs
from orchestrator.services.dataset_deletion import delete_dataset
from orchestrator.services.datasets import add_dataset
from orchestrator.services.dispatch import dispatch
from orchestrator.services.reconcile import reconcile
from tests.helpers.world import World
from tests.services.test_deletion import finish
from worker.shared.messages import JobSpec

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
    with pytest.raises(InvalidError, match="upload the file first"):
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
        with pytest.raises(ConflictError, match=rf"{job}\) is {state} and reads this file"):
            delete(world)

    refused("queued")
    jobs.pause(world.ctx, alice, job)
    refused("paused")
    jobs.resume(world.ctx, alice, job)
    dispatch(world.ctx)
    refused("leased")
    (worker,) = world.new_workers()
    worker.start()
    refused("running")
    worker.fail(permanent=True)
    assert files(world) == 1
    delete(world)
    assert files(world) == 0


def test_the_last_who_brought_it_cannot_take_it_from_anothers_job(world: World) -> None:
    """Guards: with the owner's own jobs alone asked for, Bob's job lost its file; without `may_see` he was told its name."""
    bring(world)
    job = world.submit("bob")
    with pytest.raises(ConflictError, match="a job of another member reads this file") as refused:
        delete(world)
    assert job not in str(refused.value)
    bring(world, "bob")
    delete(world)
    with pytest.raises(ConflictError, match="is queued and reads"):
        delete(world, "bob")
    assert files(world) == 1


def test_a_job_that_has_ended_goes_on_once_its_file_is_brought_again(world: World) -> None:
    """Guard: without `hold` in `retry` the job was queued for machines that would find no data."""
    bring(world)
    job, alice = world.submit("alice"), world.actors["alice"]
    jobs.cancel(world.ctx, alice, job)
    delete(world)
    with pytest.raises(ConflictError, match="was deleted: upload it again"):
        jobs.retry(world.ctx, alice, job)
    with pytest.raises(InvalidError, match="upload the file first"):
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
    """Guard: with a plain read in `hold_dataset` the deletion saw no job on PostgreSQL, and the job had no data."""
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
    assert "is queued and reads this file" in said[0]
    assert files(world) == 1


def test_bytes_that_are_brought_again_while_they_are_deleted_stay(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: with one key for the same bytes the deletion, late, took the file that had just been brought."""
    bring(world)
    deleting = world.store.delete

    def late(key: str) -> None:
        monkeypatch.undo()
        bring(world)
        deleting(key)

    monkeypatch.setattr(world.store, "delete", late)
    delete(world)
    assert files(world) == 1
    world.submit("alice")
    finish(world)


def test_the_same_bytes_at_the_same_time_are_kept_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: without `discard` in `add_dataset` the second copy lay in the store for ever."""
    putting = world.store.put

    def slow(key: str, path: Path) -> ObjectInfo:
        monkeypatch.undo()
        bring(world, "bob")
        return putting(key, path)

    monkeypatch.setattr(world.store, "put", slow)
    bring(world, "alice")
    assert files(world) == 2
    reconcile(world.ctx)
    assert files(world) == 1
    for who in ("alice", "bob"):
        delete(world, who)
    assert files(world) == 0


def test_what_a_deletion_left_undone_is_done_by_the_next_round(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: without `sweep_discarded` in `reconcile` the file stayed for ever."""
    bring(world)

    def away(key: str) -> None:
        raise StoreUnavailable(f"no answer for {key}")

    with monkeypatch.context() as outage:
        outage.setattr(world.store, "delete", away)
        delete(world)
    assert files(world) == 1
    reconcile(world.ctx)
    assert files(world) == 0


def test_a_copy_that_a_notebook_was_given_goes_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: without `copies` in `sweep_discarded` the rows lay in somebody's Drive for ever."""
    key = bring(world).key
    drive = LocalStore(world.folder / "drive", str, b"key")
    drive.put(key, world.store.path(key))
    with world.ctx.uow() as tx:
        tx.put_store_config(StoreConfig(name="drive", config={}, created_at=0.0))
        tx.claim_store_object("drive", key, "id")
    here = world.stores.get
    monkeypatch.setattr(world.stores, "get", lambda name: drive if name == "drive" else here(name))
    delete(world)
    assert not drive.path(key).exists()
