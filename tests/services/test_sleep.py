"""A server that sleeps along with its computer, or is away for a while: nobody loses work by its silence."""

from __future__ import annotations

import pytest

from orchestrator.domain.lifecycle import EndReason, JobState
from orchestrator.ports.providers import Liveness
from orchestrator.services import jobs
from orchestrator.services.dispatch import dispatch
from orchestrator.services.reconcile import Watch, reconcile
from tests.helpers.world import Worker, World
from worker.shared.messages import Action

NIGHT_S = 8 * 3600.0


@pytest.fixture
def watch(world: World) -> Watch:
    return Watch(world.ctx, longest_rest_s=world.ctx.limits.report_every_s)


def at_work(world: World, who: str = "alice") -> tuple[str, Worker]:
    job = world.submit(who, steps=8)
    dispatch(world.ctx)
    (worker,) = world.new_workers()
    worker.start()
    worker.step = 2
    worker.report()
    return job, worker


def leaves(worker: Worker) -> None:
    worker.step = 3
    assert worker.report().action is Action.DRAIN
    assert worker.save().committed
    worker.release("drained")


def test_a_session_whose_time_ran_out_in_its_sleep_saves_before_it_goes(world: World, watch: Watch) -> None:
    """Guard: without `_ask_to_leave` it was killed as soon as the lid was opened, and trained steps were lost."""
    job, worker = at_work(world)
    world.clock.tick(NIGHT_S)
    for _ in range(3):
        world.clock.tick(5.0)
        watch.round()
    assert worker.is_alive
    leaves(worker)
    watch.round()
    assert (world.job(job).state, world.job(job).head_step) == (JobState.QUEUED, 3)


def test_a_session_that_does_not_leave_when_asked_is_ended(world: World, watch: Watch) -> None:
    """Guard: without the second look at the state in `_ask_to_leave` one that hangs was asked for ever."""
    job, worker = at_work(world)
    world.clock.tick(NIGHT_S)
    watch.round()
    world.clock.tick(world.ctx.limits.stop_grace_s + 1)
    watch.round()
    assert not worker.is_alive
    watch.round()
    (lease,) = world.all_leases()
    assert (lease.end_reason, world.job(job).state) == (EndReason.LOST, JobState.QUEUED)


def test_a_notebook_that_nobody_could_hear_is_waited_for(world: World, watch: Watch) -> None:
    """Guards: without `Watch` its lease was over before it could say a word, and what it had trained was refused; with
    a rest that is counted from a pass that failed, nothing was given up any more."""
    job, worker = at_work(world)
    world.machines.liveness[worker.lease] = Liveness.UNSEEN
    world.clock.tick(600.0)
    watch.round()
    assert worker.report().action is Action.CONTINUE
    assert worker.save().committed
    _, other = at_work(world, "bob")
    other.fail(permanent=True)
    world.machines.before["clean_up"] = lambda _: 1 / 0
    for _ in range(30):
        world.clock.tick(5.0)
        with pytest.raises(ExceptionGroup):
            watch.round()
    assert world.job(job).state is JobState.QUEUED


def test_a_pause_is_heard_before_its_machine_is_ended(world: World) -> None:
    """Guard: counted from when it was asked for, and not from the server's start, the first look at a machine that
    trained on while the server was away ended it, before it had heard of the pause."""
    job, worker = at_work(world)
    jobs.pause(world.ctx, world.actors["alice"], job)
    world.clock.tick(600.0)
    reconcile(world.start_server())
    assert worker.is_alive
    leaves(worker)
    assert (world.job(job).state, world.job(job).head_step) == (JobState.PAUSED, 3)


def test_one_that_stays_silent_after_a_pause_is_ended(world: World) -> None:
    job, worker = at_work(world)
    jobs.pause(world.ctx, world.actors["alice"], job)
    world.clock.tick(600.0)
    ctx = world.start_server()
    reconcile(ctx)
    world.clock.tick(ctx.limits.stop_grace_s + 1)
    reconcile(ctx)
    assert not worker.is_alive
    reconcile(ctx)
    assert world.job(job).state is JobState.PAUSED
