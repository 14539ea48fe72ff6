"""Negative controls: take one guard out, and the machine of `test_promises` must find that out.

A property test that cannot fail proves nothing. Each case is a few events of that machine that need one guard.
`benchmarks.adversity` lets random events find the same missing guards, and more.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.adversity.mutants import MUTANTS
from tests.helpers.world import World
from tests.properties.test_promises import Promises

Story = list[Callable[[Promises], None]]

BEGUN: Story = [lambda m: m.submit("alice", 3, 0), lambda m: m.tick(starting=True)]
SAVED: Story = [*BEGUN, lambda m: m.worker_acts(0, "advance")]
LOST: Story = [*BEGUN, lambda m: m.machine_dies(0), lambda m: m.wait(4000.0), lambda m: m.look()]
STORIES: dict[str, Story] = {
    "a stale fence is heard": [*LOST, lambda m: m.worker_acts(0, "report")],
    "an unread file becomes the head": [*BEGUN, lambda m: m.worker_offers_rubbish(0, torn=True)],
    "the chain forks": [*SAVED, lambda m: m.worker_offers_rubbish(0, torn=False)],
    "the store is called in a transaction": SAVED,
    "a lost machine keeps its job": LOST,
    "a job runs on another member's account": [lambda m: m.bob_agrees(), *BEGUN, *BEGUN, *BEGUN],
    "a job runs without its owner's consent": [lambda m: m.submit("bob", 3, 0), lambda m: m.tick(starting=True)],
}


@pytest.fixture
def machine(make_database: Callable[[], Any], tmp_path: Path) -> Promises:
    return Promises(World(make_database(), tmp_path))


def _play(machine: Promises, story: Story) -> None:
    for event in story:
        event(machine)
        machine.the_promises_hold()
    machine.teardown()


@pytest.mark.parametrize("name", STORIES)
def test_with_its_guard_the_story_ends_well(name: str, machine: Promises) -> None:
    _play(machine, STORIES[name])


@pytest.mark.parametrize("name", STORIES)
def test_removing_the_guard_is_noticed(name: str, machine: Promises) -> None:
    """Whichever promise is the one that notices."""
    with MUTANTS[name].planted(), pytest.raises((AssertionError, pytest.fail.Exception)):
        _play(machine, STORIES[name])
