"""A job that stops early succeeds with its end said, and only where its file allows it; on both databases."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.domain.errors import ConflictError, InvalidError
from orchestrator.domain.lifecycle import JobState
from orchestrator.services import job_pinning
from orchestrator.services.dispatch import dispatch
from orchestrator.services.model_cards import card
from tests.helpers.world import Worker, World
from worker.shared.early_stopping import chosen
from worker.shared.job_spec import JobSpec

EARLY: dict[str, Any] = {"val_set_size": 0.2, "eval_steps": 2, "early_stopping_patience": 2}


def running(world: World) -> Worker:
    dispatch(world.ctx)
    (worker,) = world.new_workers()
    worker.start()
    return worker


def saved(worker: Worker, *steps: int) -> Worker:
    for step in steps:
        worker.step = step
        assert worker.save().committed
    return worker


def test_a_job_that_stops_early_has_succeeded_and_says_so(world: World) -> None:
    """Guard: without `_early_end` the finish was refused until the job had no machine left."""
    job = world.submit("alice", 20, **EARLY)
    worker = saved(running(world), 3, 6)
    worker.finish()
    worker.last()  # a repeated message changes nothing
    done = world.job(job)
    words = "stopped early at step 6: validation loss did not improve in 2 evaluations"
    assert (done.state, done.head_step, done.total_steps, done.message) == (JobState.SUCCEEDED, 6, 20, words)
    assert f"for 20 steps ({words})" in card(world.ctx, world.actors["alice"], job)


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({"early_stopping_patience": None}, 6),  # no such job
        ({}, 4),  # sooner than its patience allows
        ({}, 7),  # no evaluation there
    ],
)
def test_other_jobs_do_not_end_before_their_last_step(world1: World, changes: dict[str, Any], step: int) -> None:
    """Guards: each condition of `may_end_at` removed once let its case succeed."""
    asked = {key: value for key, value in (EARLY | changes).items() if value is not None}
    job = world1.submit("alice", 20, **asked)
    worker = saved(running(world1), step)
    with pytest.raises(ConflictError, match=f"Only {step} of 20 steps are committed"):
        worker.finish()
    assert world1.job(job).state is JobState.RUNNING


def test_an_early_end_needs_the_checkpoint_of_its_step(world1: World) -> None:
    """Guard: without the comparison with the head a job ended at a step that nobody had saved."""
    job = world1.submit("alice", 20, **EARLY)
    worker = saved(running(world1), 6)
    worker.step = 8
    with pytest.raises(ConflictError, match="Only 6 of 20 steps are committed"):
        worker.finish()
    assert world1.job(job).state is JobState.RUNNING


def test_a_split_without_rows_has_no_loss_to_choose_by(world1: World) -> None:
    """Guard: without the check the job failed at its first evaluation, on a machine."""
    spec = JobSpec.model_validate(
        {"base_model": "tiny", "datasets": [{"path": f"sha256:{world1.dataset}"}], "max_steps": 4, **EARLY}
    )
    one_row = spec.model_copy(update={"datasets": (spec.datasets[0].model_copy(update={"rows": 1}),)})
    assert one_row.eval_rows == 0
    with pytest.raises(InvalidError, match="has no rows, so there is no validation loss to choose by"):
        job_pinning.refuse_without_validation(one_row)


@pytest.mark.parametrize(
    ("best", "step"),
    [({"step": 2}, 2), ({"step": 9}, None), ({"step": True}, None), ({}, None), ("no", None), (None, None)],
)
def test_the_card_names_the_step_of_the_best_adapter(world1: World, best: object, step: int | None) -> None:
    """Guard: only the card in the adapter's own file said it. What a worker writes there is not trusted."""
    job = world1.submit("alice", 4, val_set_size=0.2, load_best_model_at_end=True)
    worker = running(world1)
    worker.step = 4
    offer = worker.write(worker.manifest(state={} if best is None else {"best": best}))
    assert worker.send(offer).committed
    worker.finish()
    words = f" ({chosen(step)})" if step else ""
    assert f"for 4 steps{words}.\n" in card(world1.ctx, world1.actors["alice"], job)
    head = world1.head(job).manifest
    assert "state" not in head or set(head["state"]["best"]) == {"step"}


def test_a_job_that_ends_with_its_last_adapter_names_no_other(world1: World) -> None:
    job = world1.submit("alice", 4, val_set_size=0.2)
    worker = running(world1)
    worker.step = 4
    assert worker.send(worker.write(worker.manifest(state={"best": {"step": 2}}))).committed
    worker.finish()
    assert "for 4 steps.\n" in card(world1.ctx, world1.actors["alice"], job)
