"""A state with NaN or infinite values is neither saved nor resumed from."""

from __future__ import annotations

import math

import pytest
import torch

from worker.agent.endings import ending_of
from worker.agent.transfers import DamagedError
from worker.shared import causes
from worker.shared.checkpoint_file import CheckpointError, OtherRunError
from worker.shared.messages import Failure, Grant, GrantKind
from worker.training.hostcopy import HostCopy
from worker.training.interface import UnsoundStateError
from worker.training.module_state import Changes
from worker.training.state import Run, restore, snapshot

BAD = [math.nan, math.inf, -math.inf]


def run() -> Run:
    """A run of two layers after one step."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return Run(model=model, optimizer=optimizer, scheduler=scheduler)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("part", ["adapter.1.weight", "optimizer.1.weight.exp_avg_sq"])
def test_a_state_that_is_not_finite_is_not_saved(part: str, value: float) -> None:
    """Guard: without the look in `snapshot` it was saved, uploaded and became the head."""
    made = run()
    weight = made.model[1].weight  # type: ignore[index]
    tensor = weight.data if part.startswith("adapter") else made.optimizer.state[weight]["exp_avg_sq"]
    tensor[1, 2] = value
    with pytest.raises(UnsoundStateError, match=f"{part} has NaN or infinite values"):
        snapshot(made, HostCopy(), Changes({}, {}, []))


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("part", ["adapter.1.weight", "optimizer.1.weight.exp_avg_sq"])
def test_no_session_trains_on_from_such_a_state(part: str, value: float) -> None:
    """Guard: without the look in `_copy` the session went on, and said at its first step that the loss is NaN."""
    arrays, state, ready = snapshot(run(), HostCopy(), Changes({}, {}, []))
    ready()
    again = run()
    restore(again, arrays, state)
    arrays[part] = arrays[part].copy()
    arrays[part][1, 2] = value
    with pytest.raises(CheckpointError, match=f"{part} has NaN or infinite values"):
        restore(again, arrays, state)


def test_only_a_checkpoint_that_was_tried_counts_as_bad() -> None:
    """The server gives a head up after two of these. Guard: without `cause` a bad connection was held against it."""
    sha256 = "a" * 64
    resume = Grant(key="k", kind=GrantKind.CHECKPOINT, sha256=sha256)

    def said(error: Exception) -> tuple[str | None, str]:
        failure = ending_of(error, resume)
        assert isinstance(failure, Failure)
        return failure.bad_checkpoint, failure.cause

    assert said(CheckpointError("x")) == (sha256, "")
    assert said(DamagedError("x", sha256)) == (sha256, causes.DATA)
    assert said(OtherRunError("x")) == said(UnsoundStateError("x")) == (None, "")
