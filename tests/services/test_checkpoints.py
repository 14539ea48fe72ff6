"""What becomes of checkpoints and their files when things come late, twice or damaged; on both databases."""

from __future__ import annotations

import pytest

from orchestrator.domain.jobs import Checkpoint
from orchestrator.domain.lifecycle import CheckpointState
from orchestrator.ports.stores import StoreUnavailable
from orchestrator.services import clones, jobs
from orchestrator.services.checkpoints import HEADER_BYTES
from orchestrator.services.dispatch import dispatch
from orchestrator.services.reconcile import reconcile
from orchestrator.services.worker_messages import receive
from tests.helpers.world import Worker, World
from worker.shared.checkpoint_file import MAX_HEADER_BYTES, sha256_file
from worker.shared.messages import Failure, Finish


def running(world: World) -> Worker:
    """The worker of the next session, started."""
    dispatch(world.ctx)
    (worker,) = world.new_workers()
    worker.start()
    return worker


def known(world: World, job: str) -> list[Checkpoint]:
    with world.ctx.uow() as tx:
        return tx.checkpoints.of_job(job)


def end(world: World, worker: Worker) -> None:
    """The machine vanishes, and whatever there is to clear away is cleared away."""
    world.machines.end(worker.lease)
    for _ in range(3):
        world.clock.tick(301)
        reconcile(world.ctx)


def say_damaged(world: World, worker: Worker, sha256: str) -> None:
    """The worker's last word: what it was to go on from does not load."""
    failure = Failure(message="damaged", permanent=False, bad_checkpoint=sha256)
    said = Finish(lease=worker.lease, fence=worker.assignment.fence, seq=9, step=worker.step, failure=failure)  # type: ignore[union-attr]

    receive(world.ctx, said)
    world.machines.end(worker.lease)


def test_an_offer_that_overtakes_itself_is_still_accepted(world: World) -> None:
    """Guard: without PRUNED among what the second look accepts, the slow one said that the checkpoint continues the
    wrong head, and abandoned it."""
    job = world.submit("alice", checkpoint={"keep": 1})
    worker = running(world)
    worker.step = 1
    first = worker.write(worker.manifest())
    again: list[bool] = []

    def overtake(*_: object) -> None:
        if not again:
            again.append(True)
            again.append(receive(world.ctx, first).committed)
            worker.parent = first.sha256
            for worker.step in (2, 3):
                again.append(worker.save().committed)

    world.store.after["head"] = overtake
    reply = receive(world.ctx, first)
    assert (reply.committed, reply.refusal, again) == (True, "", [True, True, True, True])
    assert [(c.step, c.state) for c in known(world, job)] == [
        (1, CheckpointState.PRUNED),
        (2, CheckpointState.COMMITTED),
        (3, CheckpointState.COMMITTED),
    ]


def test_a_header_larger_than_any_is_not_read(world: World) -> None:
    """Guard: without the limit the whole file was read into the server's memory."""
    world.submit("alice")
    worker = running(world)
    worker.step = 1
    offer = worker.write(worker.manifest())
    path, size = world.store.path(offer.key), MAX_HEADER_BYTES + 10
    with path.open("wb") as file:
        file.write((size - 8).to_bytes(8, "little"))
        file.truncate(size)
    read: list[int] = []
    world.store.before["head"] = lambda _, most: read.append(most)
    reply = receive(world.ctx, offer.model_copy(update={"sha256": sha256_file(path), "size": size}))
    assert read == [HEADER_BYTES]
    assert not reply.committed
    assert "not a checkpoint" in reply.refusal


def test_what_others_write_while_an_object_is_deleted_stays(world: World) -> None:
    """Guard: with the row as it was read before the deletion written back, the checkpoint was PRUNED again."""
    job = world.submit("alice", checkpoint={"keep": 1})
    worker = running(world)

    def meanwhile(_: str) -> None:
        with world.ctx.uow() as tx:
            (pruned,) = tx.checkpoints.of_job(job, CheckpointState.PRUNED)
            pruned.to(CheckpointState.ABANDONED)
            tx.checkpoints.save(pruned)

    world.store.after["delete"] = meanwhile
    for worker.step in (1, 2, 3):
        worker.save()
    assert [(c.state, c.key == "") for c in known(world, job)] == [
        (CheckpointState.ABANDONED, True),
        (CheckpointState.COMMITTED, False),
        (CheckpointState.COMMITTED, False),
    ]


def test_what_was_uploaded_and_never_offered_goes_with_its_lease(world: World) -> None:
    """Guard: with the keys taken from the database, where only a Drive's are, the local store kept every stray."""
    job = world.submit("alice")
    worker = running(world)
    worker.step = 1
    worker.save()
    worker.step = 2
    stray = world.store.path(worker.write(worker.manifest()).key)
    cut_off = stray.with_name(f"{stray.name}.tmp")
    cut_off.write_bytes(b"half")
    end(world, worker)
    assert not stray.exists()
    assert not cut_off.exists()
    assert world.store.path(world.head(job).key).exists()


def test_what_counts_is_no_stray(world: World) -> None:
    """Guard: without `adapter_key` in `sweep_strays` a finished job's adapter went with its lease; without `is_in_use`,
    the checkpoint that a clone had begun with."""
    job = world.submit("alice", 3, checkpoint={"keep": 1})
    worker = running(world)
    worker.step = 1
    worker.save()
    first = world.head(job)
    clone = clones.clone(world.ctx, world.actors["alice"], job, {}, checkpoint=first.sha256).id
    jobs.pause(world.ctx, world.actors["alice"], clone)
    for worker.step in (2, 3):
        worker.save()
    assert known(world, job)[0].key == "", "the origin does not speak of it any more"
    worker.finish()
    end(world, worker)
    assert world.store.path(first.key).exists()
    assert world.store.path(world.job(job).adapter_key or "").exists()


def test_a_silent_store_keeps_no_lease_from_being_settled(world: World) -> None:
    world.submit("alice")
    worker = running(world)

    def away(prefix: str) -> None:
        raise StoreUnavailable(prefix)

    world.store.before["keys"] = away
    end(world, worker)
    assert worker.lease not in {lease.id for lease in world.all_leases()}


def test_a_damaged_file_goes(world: World) -> None:
    """Guard: without CORRUPT among the undeleted, the file lay there for ever."""
    job = world.submit("alice")
    worker = running(world)
    for worker.step in (1, 2):
        worker.save()
    damaged = world.head(job)
    worker.release()
    world.store.path(damaged.key).write_bytes(b"garbage")
    say_damaged(world, running(world), damaged.sha256)
    reconcile(world.ctx)
    assert [(c.state, c.key == "") for c in known(world, job)] == [
        (CheckpointState.COMMITTED, False),
        (CheckpointState.CORRUPT, True),
    ]
    assert not world.store.path(damaged.key).exists()
    assert world.store.path(world.head(job).key).exists()


def test_a_damaged_file_that_a_clone_counts_on_stays(world: World) -> None:
    """Guard: without `is_in_use` in `sweep` the clone lost the file before it had looked at it itself; without the look
    at heads, the clone, retried, asked for the key ''."""
    job = world.submit("alice")
    worker = running(world)
    worker.step = 1
    worker.save()
    damaged = world.head(job)
    clone = clones.clone(world.ctx, world.actors["alice"], job, {}, checkpoint=damaged.sha256).id
    worker.release()
    world.store.path(damaged.key).write_bytes(b"garbage")
    dispatch(world.ctx)
    workers = {w.start().job: w for w in world.new_workers()}
    say_damaged(world, workers[job], damaged.sha256)
    reconcile(world.ctx)
    assert known(world, job)[0].key == ""
    assert world.store.path(damaged.key).exists()
    say_damaged(world, workers[clone], damaged.sha256)
    reconcile(world.ctx)
    assert world.job(clone).head == damaged.sha256
    assert world.head(clone).state is CheckpointState.CORRUPT
    assert world.head(clone).key == damaged.key


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # PostgreSQL plans by how much is there
def test_looking_for_what_is_to_be_deleted_reads_no_other_row(world: World) -> None:
    """Guard: with the states bound instead of spelled like the index's condition, SQLite read every checkpoint."""
    world.submit("alice", steps=20)
    worker = running(world)
    worker.step = 1
    worker.save()
    few = _instructions(world)
    for worker.step in range(2, 20):
        worker.save()
    assert _instructions(world) == few


def _instructions(world: World) -> int:
    """What SQLite's virtual machine does to find the checkpoints to delete."""
    count = 0

    def one_more() -> None:
        nonlocal count
        count += 1

    with world.ctx.uow() as tx:
        driver = tx.connection.connection.driver_connection  # type: ignore[attr-defined]

        driver.set_progress_handler(one_more, 1)
        tx.checkpoints.undeleted()
        driver.set_progress_handler(None, 1)
    return count
