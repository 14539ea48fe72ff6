"""Budgets and cadence on a clock that only moves when told."""

from __future__ import annotations

import math

import pytest

from orchestrator.testing import FakeClock
from worker.agent.deadline import Budget, Cadence
from worker.agent.time_ledger import Ledger
from worker.shared.messages import Phase


def test_budget_leaves_room_for_one_step_and_twice_the_save() -> None:
    """Removed: the save in `needed`; the session would then end in the middle of its last upload."""
    clock = FakeClock(100.0)
    budget = Budget(1000.0, clock.now)
    budget.record_step(20.0)
    budget.record_save(5.0, 15.0)
    clock.tick(1000.0 - (1.5 * 20 + 2 * 20 + budget.margin) - 0.1)
    assert not budget.is_nearly_over
    clock.tick(0.2)
    assert budget.is_nearly_over


def test_budget_remembers_the_worst_step() -> None:
    budget = Budget(100.0, FakeClock(100.0).now)
    for seconds in (3.0, 9.0, 2.0):
        budget.record_step(seconds)
    assert budget.needed == pytest.approx(13.5 + budget.margin)


def test_cadence_is_young_daly_for_the_measured_stall() -> None:
    clock = FakeClock(100.0)
    cadence = Cadence(21_600.0, 3_600.0, clock.now)
    for stall in (0.4, 0.5, 0.6):
        cadence.record_stall(stall)
    assert cadence.interval_s == pytest.approx(max(math.sqrt(2 * 0.5 * 21_600), 0.5 / 0.003))


def test_cadence_never_waits_longer_than_the_job_allows() -> None:
    """Removed: the `min`; an owner who asks for a save every ten seconds would get one every minute."""
    clock = FakeClock(100.0)
    cadence = Cadence(21_600.0, 10.0, clock.now)
    cadence.record_stall(2.0)
    cadence.record_write(30.0)
    assert cadence.interval_s == 10.0
    cadence.record_save_start()
    assert not cadence.is_due
    clock.tick(10.0)
    assert cadence.is_due


@pytest.mark.parametrize(
    ("stall", "write", "expected"),
    [
        (0.01, 0.0, 0.01 / 0.003),  # what keeps saving cheap
        (0.03, 0.0, 0.03 * 300),  # no longer cheap, but the gap is large enough
        (0.03, 5.0, 0.03 * 300),
        (0.2, 0.0, math.sqrt(2 * 0.2 * 300)),  # what loses least
    ],
)
def test_saving_cheaply_loses_little_where_machines_vanish_soon(stall: float, write: float, expected: float) -> None:
    """Removed: the `min` with LARGEST_GAP; a save of 0.2 s would then come every 67 s where machines live for 300."""
    cadence = Cadence(300.0, 3_600.0, FakeClock(100.0).now)
    cadence.record_stall(stall)
    cadence.record_write(write)
    assert cadence.interval_s == pytest.approx(expected)


def test_the_ledger_adds_up_to_all_the_time_there_was() -> None:
    clock = FakeClock(100.0)
    ledger = Ledger(clock.now, began=95.0)
    for phase, seconds in ((Phase.LOAD, 7.0), (Phase.TRAIN, 50.0), (Phase.SAVE, 0.5), (Phase.TRAIN, 20.0)):
        clock.tick(1.0)
        ledger.enter(phase)
        clock.tick(seconds)
    spent = ledger.seconds()
    assert sum(spent.values()) == pytest.approx(clock.now() - 95.0)
    assert spent[Phase.TRAIN] == pytest.approx(50.0 + 20.0 + 1.0)
