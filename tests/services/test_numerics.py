"""New jobs compute in the new way, old jobs and what continues them in theirs; what cannot be trained is refused."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from orchestrator.domain.errors import InvalidError
from orchestrator.services import clones
from orchestrator.services.dispatch import dispatch
from orchestrator.services.plans import plan
from tests.helpers.world import Worker, World
from tests.services.test_clones import clone, running, saves, without_key
from worker.shared.job_spec import NUMERICS, VAL_SPLIT, JobSpec


def test_a_clone_goes_on_as_its_original_computes(world: World, engine: Engine) -> None:
    """Guard: without `begun` the clone of an old job's checkpoint has another warm-up, and other bytes."""
    old = world.submit("alice")
    assert world.job(old).spec["numerics"] == NUMERICS
    without_key(world, engine, old, "numerics")
    worker = running(world)
    saves(worker, 2)
    assert worker.assignment is not None
    assert "numerics" not in worker.assignment.spec.model_dump(mode="json")
    assert "numerics" not in world.job(clone(world, old, 2)).spec
    from_the_start = clones.clone(world.ctx, world.actors["alice"], old, {}).id
    assert world.job(from_the_start).spec["numerics"] == NUMERICS


def test_a_clone_keeps_the_split_of_its_original(world: World, engine: Engine) -> None:
    """Guard: without `val_split` in `_begun_as` the clone of an old job's checkpoint would train on held-out rows."""
    old = world.submit("alice", val_set_size=0.25)
    assert world.job(old).spec["val_split"] == VAL_SPLIT
    assert "val_split" not in world.job(world.submit("bob")).spec
    without_key(world, engine, old, "val_split")
    saves(running_of(world, old), 2)
    assert "val_split" not in world.job(clone(world, old, 2)).spec
    assert world.job(clones.clone(world.ctx, world.actors["alice"], old, {}).id).spec["val_split"] == VAL_SPLIT


def running_of(world: World, job: str) -> Worker:
    """The started worker of a job."""
    dispatch(world.ctx)
    started = {worker.start().job: worker for worker in world.new_workers()}
    return started[job]


def test_what_the_config_rules_out_is_refused_before_dispatch(world: World) -> None:
    """Guard: without the look at the type four sessions started, and each of them crashed."""
    with pytest.raises(InvalidError, match=r"org/mamba cannot be trained like this: .* set lora_target_modules to"):
        world.submit("alice", base_model="org/mamba")
    spec = {"base_model": "org/jamba", "adapter": "qlora", "max_steps": 1}
    rows = {"datasets": [{"path": f"sha256:{world.dataset}", "file_format": "jsonl"}]}
    with pytest.raises(InvalidError) as refused:
        plan(world.ctx, world.actors["alice"], JobSpec.model_validate(spec | rows))
    assert [pointer for pointer, _ in refused.value.problems] == ["/adapter"]
