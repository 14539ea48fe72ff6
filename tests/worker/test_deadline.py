"""Budgets and cadence on a clock that only moves when told."""

from __future__ import annotations

import math

import pytest

from worker.agent.deadline import Budget, Cadence
from worker.agent.time_ledger import Ledger
from worker.shared.messages import Phase


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_budget_leaves_room_for_one_step_and_twice_the_save() -> None:
    """Removed: the save in `needed`; the session would then end in the middle of its last upload."""
    clock = Clock()
    budget = Budget(1000.0, clock)
    budget.stepped(20.0)
    budget.saved(5.0, 15.0)
    clock.time += 1000.0 - (1.5 * 20 + 2 * 20 + budget.margin) - 0.1
    assert not budget.is_nearly_over
    clock.time += 0.2
    assert budget.is_nearly_over


def test_budget_remembers_the_worst_step() -> None:
    budget = Budget(100.0, Clock())
    for seconds in (3.0, 9.0, 2.0):
        budget.stepped(seconds)
    assert budget.needed == pytest.approx(13.5 + budget.margin)


def test_cadence_is_young_daly_for_the_measured_stall() -> None:
    clock = Clock()
    cadence = Cadence(21_600.0, 3_600.0, clock)
    for stall in (0.4, 0.5, 0.6):
        cadence.stalled(stall)
    assert cadence.interval_s == pytest.approx(max(math.sqrt(2 * 0.5 * 21_600), 0.5 / 0.003))


def test_cadence_never_waits_longer_than_the_job_allows() -> None:
    """Removed: the `min`; an owner who asks for a save every ten seconds would get one every minute."""
    clock = Clock()
    cadence = Cadence(21_600.0, 10.0, clock)
    cadence.stalled(2.0)
    cadence.wrote(30.0)
    assert cadence.interval_s == 10.0
    cadence.begun()
    assert not cadence.is_due
    clock.time += 10.0
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
    cadence = Cadence(300.0, 3_600.0, Clock())
    cadence.stalled(stall)
    cadence.wrote(write)
    assert cadence.interval_s == pytest.approx(expected)


def test_the_ledger_adds_up_to_all_the_time_there_was() -> None:
    clock = Clock()
    ledger = Ledger(clock, began=95.0)
    for phase, seconds in ((Phase.LOAD, 7.0), (Phase.TRAIN, 50.0), (Phase.SAVE, 0.5), (Phase.TRAIN, 20.0)):
        clock.time += 1.0
        ledger.enter(phase)
        clock.time += seconds
    spent = ledger.seconds()
    assert sum(spent.values()) == pytest.approx(clock.time - 95.0)
    assert spent[Phase.TRAIN] == pytest.approx(50.0 + 20.0 + 1.0)
