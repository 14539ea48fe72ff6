"""The server dies between any two steps of the story; reconciling leads to the same end every time (promise 7).

Seen failing without `reconcile` asking providers (a claim that was never launched stays LEASED for ever) and without
the re-reading of a known offer (a commit whose answer was lost would be refused as a fork).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from orchestrator.domain.errors import UnavailableError
from orchestrator.domain.lifecycle import JobState
from orchestrator.ports.stores import StoreUnavailable
from orchestrator.ports.system import Limits
from orchestrator.services.dispatch import dispatch
from orchestrator.services.reconcile import reconcile
from orchestrator.services.worker_messages import receive
from tests.helpers.world import Worker, World
from worker.shared.messages import Offer

STEPS = 3


class ServerDied(BaseException):
    """Not an `Exception`: nothing may catch it."""


def launched(world: World) -> Worker:
    dispatch(world.ctx)
    (worker,) = world.new_workers()
    return worker


def started(world: World) -> Worker:
    worker = launched(world)
    worker.start()
    return worker


def after_claim(world: World) -> None:
    """The lease is in the database, the launch never happened."""

    def die(_: object) -> None:
        raise ServerDied

    world.machines.before["launch"] = die
    with pytest.raises(ServerDied):
        dispatch(world.ctx)
    world.machines.before.clear()


def after_launch(world: World) -> None:
    """The machine runs, its id was never written down."""
    world.machines.lose_reply = True
    launched(world)
    world.machines.lose_reply = False


def after_start(world: World) -> None:
    """The worker never got its assignment and asks again."""
    worker = launched(world)
    worker.start()
    world.start_server()
    assert worker.start().fence == 1


def after_upload(world: World) -> None:
    """The file lies in the store, nobody ever spoke of it."""
    worker = started(world)
    worker.step = 1
    worker.write(worker.manifest())


def offer_to_a_silent_store(world: World, offer: Offer) -> None:
    """The offer is written down and goes no further."""

    def silent(key: str) -> None:
        raise StoreUnavailable(key)

    world.store.before["stat"] = silent
    with pytest.raises(UnavailableError):
        receive(world.ctx, offer)
    world.store.before.clear()


def after_offer(world: World) -> None:
    """The offer is written down, the store did not answer, the worker offers again."""
    worker = started(world)
    worker.step = 1
    offer = worker.write(worker.manifest())
    offer_to_a_silent_store(world, offer)
    world.start_server()
    assert receive(world.ctx, offer).committed
    worker.parent = offer.sha256


def after_commit(world: World) -> None:
    """The checkpoint is the head, the worker never heard so."""
    worker = started(world)
    worker.step = 1
    offer = worker.write(worker.manifest())
    assert receive(world.ctx, offer).committed
    world.start_server()
    assert receive(world.ctx, offer).committed
    worker.parent = offer.sha256


def after_finish(world: World) -> None:
    """The job is done, the worker never heard so."""
    worker = started(world)
    for worker.step in range(1, STEPS + 1):
        worker.save()
    worker.finish()
    world.start_server()
    worker.last()


@pytest.mark.parametrize("machine_dies", [False, True], ids=["machine lives", "machine dies too"])
@pytest.mark.parametrize(
    "crash", [after_claim, after_launch, after_start, after_upload, after_offer, after_commit, after_finish]
)
def test_a_crash_between_any_two_steps_is_repaired(
    world: World, crash: Callable[[World], None], machine_dies: bool
) -> None:
    job = world.submit("alice", STEPS)
    crash(world)
    world.start_server()
    if machine_dies:
        world.machines.end(*world.machines.leases)
    for _ in range(4):
        world.clock.tick(301)
        reconcile(world.ctx)
        dispatch(world.ctx)
        world.new_workers()
        for worker in [w for w in world.workers if w.is_alive]:
            go_on(world, worker)
    done = world.job(job)
    assert (done.state, done.head_step) == (JobState.SUCCEEDED, STEPS)
    assert world.store.stat(done.adapter_key or "").sha256 == done.adapter_zip_sha256
    assert not world.machines.rejecting


def go_on(world: World, worker: Worker) -> None:
    """What a living worker does next, wherever it stands."""
    if worker.assignment is None:
        worker.start()
    assert worker.assignment is not None
    worker.report()
    head = world.job(worker.assignment.job)
    worker.step, worker.parent = head.head_step, head.head
    while worker.step < STEPS:
        worker.step += 1
        assert worker.save().committed
    worker.finish()


def test_offers_that_nobody_commits_are_cleared_away(world: World) -> None:
    """Removed: `abandon_stale`; the store would fill with files that no row speaks for."""
    world.submit("alice", STEPS)
    worker = started(world)
    worker.step = 1
    offer = worker.write(worker.manifest())
    offer_to_a_silent_store(world, offer)
    assert world.store.path(offer.key).exists()
    worker.fail()
    world.clock.tick(world.ctx.limits.offer_ttl_s + 1)
    reconcile(world.ctx)
    assert not world.store.path(offer.key).exists()


def test_an_offer_of_a_session_that_lives_waits_for_its_store(world: World) -> None:
    """Removed: `is_live` in `abandon_stale`; after an hour without the store the newest checkpoint was deleted, and its
    session ended.
    """
    world.submit("alice", STEPS)
    worker = started(world)
    worker.step = 1
    offer = worker.write(worker.manifest())
    offer_to_a_silent_store(world, offer)
    world.ctx = dataclasses.replace(world.ctx, limits=Limits(offer_ttl_s=600.0))
    for _ in range(20):
        world.clock.tick(50)
        worker.report()
        reconcile(world.ctx)
    assert receive(world.ctx, offer).committed
