"""A damaged head, on both databases."""

from __future__ import annotations

from orchestrator.domain.lifecycle import JobState
from orchestrator.services import leases
from tests.helpers.world import World
from tests.services.test_clones import running, saves
from worker.shared.messages import Failure, Finish


def test_a_job_whose_only_checkpoint_is_damaged_starts_again_and_ends(world: World) -> None:
    """Guard: without `_give_up_the_chain` the first commit of the new start broke the index that forbids forks, for ever."""
    job = world.submit("alice", 3, checkpoint={"keep": 1})
    worker = running(world)
    saves(worker, 1, 2)
    head = world.head(job)
    world.store.path(head.key).write_bytes(b"damaged")
    failure = Failure(message="does not hash", permanent=False, bad_checkpoint=head.sha256)
    leases.finish(world.ctx, Finish(lease=worker.lease, fence=1, seq=99, step=2, failure=failure))
    assert (world.job(job).head, world.job(job).state) == (None, JobState.QUEUED)
    world.clock.time += 4_000
    again = running(world)
    assert again.step == 0
    saves(again, 1, 2, 3)
    again.finish()
    assert world.job(job).state is JobState.SUCCEEDED
