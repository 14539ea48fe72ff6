"""Where jobs go, as the services decide it by what drivers say of their machines; on both databases."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine

from orchestrator.domain.errors import InvalidError
from orchestrator.domain.lifecycle import JobState
from orchestrator.domain.model import Account
from orchestrator.ports.providers import Capacity, LaunchRequest, QuotaExhausted
from orchestrator.services import jobs
from orchestrator.services.dispatch import FULL_REST_S, dispatch, why_waiting
from orchestrator.services.reconcile import reconcile
from tests.helpers.offline_world import DeafWorld
from tests.helpers.world import World


def test_a_model_of_the_servers_disk_waits_for_a_machine_that_sees_it(world: World) -> None:
    """Removed: `from_folder` in `to_pending` or `any_folder` in `_place`; it was sent out to come back until it failed."""
    world.machines.any_folder = False
    job = world.submit("alice", base_model="/models/mine")
    assert dispatch(world.ctx) == 0
    waits = why_waiting(world.ctx, world.job(job))
    assert waits is not None
    assert "which alice" in waits.reason
    assert "does not see" in waits.reason
    world.machines.any_folder = True
    assert dispatch(world.ctx) == 1


def test_one_account_that_cannot_be_read_keeps_no_other_waiting(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: without `except Exception` in `_room` one member's typo ended every round, and nobody's jobs started."""
    room = world.machines.room

    def odd(account: Account) -> Capacity:
        if account.member_id == "bob":
            raise ValueError("invalid literal for int() with base 10: 'two'")
        return room(account)

    monkeypatch.setattr(world.machines, "room", odd)
    his, hers = world.submit("bob"), world.submit("alice")
    assert dispatch(world.ctx) == 1
    assert world.job(hers).state is JobState.LEASED
    waits = why_waiting(world.ctx, world.job(his))
    assert waits is not None
    assert "bob's: its driver failed (ValueError: invalid literal" in waits.reason


def test_a_job_that_rests_says_what_went_wrong(world: World) -> None:
    """Guard: without the last session's words nobody saw that the model's folder had gone, but for those who looked for it."""
    job = world.submit("alice")
    for words in ("the disk is full", "the base model is not on this machine"):
        world.clock.time += 10.0
        assert dispatch(world.ctx) == 1
        (worker,) = world.new_workers()
        worker.start()
        worker.release("unfit", words)
    waits = why_waiting(world.ctx, world.job(job))
    assert waits is not None
    assert waits.until is not None
    assert waits.reason == "waiting before the next try; the last session ended: the base model is not on this machine"
    world.clock.time = waits.until
    assert why_waiting(world.ctx, world.job(job)) is None


def test_jobs_that_fit_nowhere_hide_none_that_does(world: World) -> None:
    """Guard: with one depth of 16 the free machines stayed empty for as long as those sixteen waited."""
    for _ in range(20):
        world.submit("alice", placement={"accounts": ["another"]})
    fits = world.submit("alice", priority=-1)
    assert dispatch(world.ctx) == 1
    assert world.job(fits).state is JobState.LEASED


def test_a_provider_that_has_no_room_after_all_costs_the_job_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards: counted as losses, twenty of them ended the job; with a time in the past taken at its word the provider was
    asked again in every round.
    """
    job, asked = world.submit("alice"), list[str]()

    def full(request: LaunchRequest) -> str:
        asked.append(request.lease_id)
        raise QuotaExhausted("two sessions run already", until=world.clock.time - 5)

    monkeypatch.setattr(world.machines, "launch", full)
    for _ in range(30):
        assert dispatch(world.ctx) == 1
        assert dispatch(world.ctx) == 0
        world.clock.time += FULL_REST_S + 1
    assert len(asked) == 30
    assert (world.job(job).state, world.job(job).losses_in_a_row) == (JobState.QUEUED, 0)


def test_a_job_that_is_cancelled_before_its_launch_starts_no_machine(engine: Engine, tmp_path: Path) -> None:
    """Guard: without `_is_live` in `_launch` a machine that cannot be told was brought up for a job that had ended."""
    world = DeafWorld(engine, tmp_path)
    later = list[Callable[[], object]]()
    world.ctx = dataclasses.replace(world.ctx, spawn=later.append)
    job = world.submit("alice")
    assert dispatch(world.ctx) == 1
    jobs.cancel(world.ctx, world.actors["alice"], job)
    reconcile(world.ctx)
    for launch in later:
        launch()
    assert world.machines.launched == {}
    reconcile(world.ctx)
    assert world.all_leases() == []


def test_a_machine_that_starts_while_its_job_is_cancelled_is_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: without `ctx.launching` in the choice of ended leases the lease was settled before its machine was there."""
    launch = world.machines.launch
    job = world.submit("alice")

    def slow(request: LaunchRequest) -> str:
        jobs.cancel(world.ctx, world.actors["alice"], job)
        reconcile(world.ctx)
        return launch(request)

    monkeypatch.setattr(world.machines, "launch", slow)
    dispatch(world.ctx)
    (lease,) = world.machines.launched
    world.clock.time += world.ctx.limits.stop_grace_s + 1
    reconcile(world.ctx)
    assert lease in world.machines.dead


def test_nobody_is_asked_for_room_while_nothing_is_queued(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: without `has_queued` in `dispatch` every account was asked in every round, thousands of times a day."""
    asked, room = list[str](), world.machines.room

    def counted(account: Account) -> Capacity:
        asked.append(account.id)
        return room(account)

    monkeypatch.setattr(world.machines, "room", counted)
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
    with pytest.raises(InvalidError, match="there is no provider kagle: one of sim"):
        world.submit("alice", placement={"providers": ["sim", "kagle"]})
