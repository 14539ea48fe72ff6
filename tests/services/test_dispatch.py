"""Where jobs go, as the services decide it by what drivers say of their machines; on both databases."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine

from orchestrator.domain.accounts import Account
from orchestrator.domain.errors import InvalidError
from orchestrator.domain.lifecycle import JobState
from orchestrator.ports.providers import LaunchRequest, QuotaExhausted
from orchestrator.services import jobs
from orchestrator.services.dispatch import FULL_REST_S, dispatch, why_waiting
from orchestrator.services.reconcile import reconcile
from tests.helpers.offline_world import OfflineWorld
from tests.helpers.world import World


def test_a_model_of_the_servers_disk_waits_for_a_machine_that_sees_it(world: World) -> None:
    """Removed: `from_folder` in `to_pending` or `any_folder` in `_place`; it was sent out to come back until it
    failed."""
    world.machines.rooms = dataclasses.replace(world.machines.rooms, any_folder=False)
    job = world.submit("alice", base_model="/models/mine")
    assert dispatch(world.ctx) == 0
    waits = why_waiting(world.ctx, job)
    assert waits is not None
    assert "which alice" in waits.reason
    assert "cannot read" in waits.reason
    world.machines.rooms = dataclasses.replace(world.machines.rooms, any_folder=True)
    assert dispatch(world.ctx) == 1


def test_one_account_that_cannot_be_read_keeps_no_other_waiting(world: World) -> None:
    """Guard: without `except Exception` in `_room` one member's typo ended every round, and nobody's jobs started."""

    def odd(account: Account) -> None:
        if account.member_id == "bob":
            raise ValueError("invalid literal for int() with base 10: 'two'")

    world.machines.before["capacity"] = odd
    his, hers = world.submit("bob"), world.submit("alice")
    assert dispatch(world.ctx) == 1
    assert world.job(hers).state is JobState.LEASED
    waits = why_waiting(world.ctx, his)
    assert waits is not None
    assert "bob's: its driver failed (ValueError: invalid literal" in waits.reason


def test_a_job_that_rests_says_what_went_wrong(world: World) -> None:
    """Guard: without the last session's words nobody saw that the model's folder had gone, but for those who looked for
    it."""
    job = world.submit("alice")
    for words in ("the disk is full", "the base model is not on this machine"):
        world.clock.tick(10.0)
        assert dispatch(world.ctx) == 1
        (worker,) = world.new_workers()
        worker.start()
        worker.release("unfit", words)
    waits = why_waiting(world.ctx, job)
    assert waits is not None
    assert waits.until is not None
    assert (
        waits.reason == "waiting before the next attempt; the last session ended: the base model is not on this machine"
    )
    world.clock.set(waits.until)
    assert why_waiting(world.ctx, job) is None


def test_jobs_that_fit_nowhere_hide_none_that_does(world: World) -> None:
    """Guard: with one depth of 16 the free machines stayed empty for as long as those sixteen waited."""
    for _ in range(20):
        world.submit("alice", placement={"accounts": ["another"]})
    fits = world.submit("alice", priority=-1)
    assert dispatch(world.ctx) == 1
    assert world.job(fits).state is JobState.LEASED


def test_a_provider_that_has_no_room_after_all_costs_the_job_nothing(world: World) -> None:
    """Guards: counted as losses, twenty of them ended the job; with a time in the past taken at its word the provider
    was asked again in every round.
    """
    job, asked = world.submit("alice"), list[str]()

    def full(request: LaunchRequest) -> None:
        asked.append(request.lease_id)
        raise QuotaExhausted("two sessions run already", until=world.clock.now() - 5)

    world.machines.before["launch"] = full
    for _ in range(30):
        assert dispatch(world.ctx) == 1
        assert dispatch(world.ctx) == 0
        world.clock.tick(FULL_REST_S + 1)
    assert len(asked) == 30
    assert (world.job(job).state, world.job(job).losses_in_a_row) == (JobState.QUEUED, 0)


def test_a_job_that_is_cancelled_before_its_launch_starts_no_machine(engine: Engine, tmp_path: Path) -> None:
    """Guard: without `_is_live` in `_launch` a machine that cannot be told was brought up for a job that had ended."""
    world = OfflineWorld(engine, tmp_path)
    later = list[Callable[[], object]]()
    world.ctx = dataclasses.replace(world.ctx, spawn=later.append)
    job = world.submit("alice")
    assert dispatch(world.ctx) == 1
    jobs.cancel(world.ctx, world.actors["alice"], job)
    reconcile(world.ctx)
    for launch in later:
        launch()
    assert world.machines.launched == []
    reconcile(world.ctx)
    assert world.all_leases() == []


def test_a_machine_that_starts_while_its_job_is_cancelled_is_ended(world: World) -> None:
    """Guard: without `ctx.launching` in the choice of ended leases the lease was settled before its machine was
    there."""
    job = world.submit("alice")

    def cancel(_: LaunchRequest) -> None:
        jobs.cancel(world.ctx, world.actors["alice"], job)
        reconcile(world.ctx)

    world.machines.before["launch"] = cancel
    dispatch(world.ctx)
    (lease,) = world.machines.leases
    world.clock.tick(world.ctx.limits.stop_grace_s + 1)
    reconcile(world.ctx)
    assert world.machines.has_ended(lease)


def test_nobody_is_asked_for_room_while_nothing_is_queued(world: World) -> None:
    """Guard: without `has_queued` in `dispatch` every account was asked in every round, thousands of times a day."""
    asked = list[str]()
    world.machines.before["capacity"] = lambda account: asked.append(account.id)
    assert dispatch(world.ctx) == 0
    assert asked == []
    world.submit("alice")
    asked.clear()
    dispatch(world.ctx)
    assert len(asked) == 2


def test_a_pause_that_is_taken_back_costs_no_time(world: World) -> None:
    """Guard: without PAUSED in `retry_at` the job waited a second, and another one took its machine."""
    job = world.submit("alice")
    dispatch(world.ctx)
    (worker,) = world.new_workers()
    worker.start()
    jobs.pause(world.ctx, world.actors["alice"], job)
    worker.report()
    jobs.resume(world.ctx, world.actors["alice"], job)
    worker.release("paused")
    assert dispatch(world.ctx) == 1


def test_a_provider_that_nobody_knows_is_refused(world: World) -> None:
    """Guard: without `_refuse_the_unknown` a job with a typo waited for ever."""
    with pytest.raises(InvalidError, match=r"There is no provider kagle\. Choose one of sim"):
        world.submit("alice", placement={"providers": ["sim", "kagle"]})
