"""Where jobs go, as the services decide it by what drivers say of their machines; on both databases."""

from __future__ import annotations

from pathlib import Path

from orchestrator.adapters.unit_of_work import make_engine
from orchestrator.services.dispatch import dispatch, why_waiting
from tests.world import World


def test_a_model_of_the_servers_disk_waits_for_a_machine_that_sees_it(database_url: str, tmp_path: Path) -> None:
    """Removed: `from_folder` in `as_waiting` or `any_folder` in `_place`; it was sent out to come back until it failed."""
    engine = make_engine(database_url)
    world = World(engine, tmp_path)
    world.machines.any_folder = False
    job = world.submit("alice", base_model="/models/mine")
    assert dispatch(world.ctx) == 0
    waits = why_waiting(world.ctx, world.job(job))
    assert waits is not None
    assert "which alice" in waits.reason
    assert "does not see" in waits.reason
    world.machines.any_folder = True
    assert dispatch(world.ctx) == 1
    engine.dispose()
