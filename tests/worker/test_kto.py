"""KTO: the drift is one number of the global batch, and a set of one kind is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.helpers import preference_rows
from tests.worker.test_methods import SURE, Bench, sigmoid
from worker.shared.dataset_spec import RowFormat
from worker.shared.job_spec import JobSpec
from worker.training.encoding import IGNORE, Example
from worker.training.interface import Decision, PermanentError
from worker.training.methods.kto import Kto
from worker.training.methods.scored import Scores
from worker.training.ranks import Group
from worker.training.sampler import MicroBatches, Share
from worker.training.trainer import StepTrainer

SETTINGS = {"rl_beta": 0.5, "kto_desirable_weight": 2.0, "kto_undesirable_weight": 3.0}


def test_the_loss_is_that_of_the_paper() -> None:
    """By hand. Guard: without the bound a model that is nearer than the reference had a drift below 0."""
    scores = replace(SURE, answer=SURE.answer[:, :1], reference=SURE.reference[:, :1])
    loss, values = Kto(SETTINGS).loss(scores)
    wanted = (2 * (1 - sigmoid(0.5 * (1 - 0.5))) + 3 * (1 - sigmoid(0.5 * (0.5 - 0.5)))) / 2
    assert float(loss) == pytest.approx(wanted, rel=1e-12)
    assert values == {"kl": 0.5, "reward_margin": 0.5 * (1 - 0.5)}
    near, values = Kto(SETTINGS).loss(replace(scores, drift=torch.tensor([-3.0, 1.0], dtype=torch.float64)))
    wanted = (2 * (1 - sigmoid(0.5)) + 3 * (1 - sigmoid(-0.25))) / 2
    assert float(near) == pytest.approx(wanted, rel=1e-12)
    assert values["kl"] == 0.0
    assert not math.isnan(float(loss))


def test_each_prompt_gets_the_answer_before_it() -> None:
    """Guard: the first row's neighbour is the last one of the global batch, which another process may have."""
    rows = [Example([10 * n, 10 * n + 1, 10 * n + 2], [IGNORE, 10 * n + 1, 10 * n + 2]) for n in range(1, 4)]
    mixed = Kto(SETTINGS).measured(rows, rows[-1], 64)
    assert [example.input_ids for example in mixed] == [[10, 31, 32], [20, 11, 12], [30, 21, 22]]
    assert [example.labels for example in mixed] == [[IGNORE, 31, 32], [IGNORE, 11, 12], [IGNORE, 21, 22]]
    assert [len(example.input_ids) for example in Kto(SETTINGS).measured(rows, rows[-1], 2)] == [2, 2, 2]


def test_the_drift_does_not_depend_on_the_micro_batch(base: Path) -> None:
    """Guard: measured in each micro-batch, as TRL does on each device, or with dropout, it was another number."""
    found: list[torch.Tensor] = []

    class Noted(Kto):
        def loss(self, scores: Scores) -> tuple[torch.Tensor, dict[str, float]]:
            found.append(scores.drift)
            return super().loss(scores)

    for micro_batch in (1, 2, 5):
        Bench(base, "kto", micro_batch, 0.1).update(Noted(SETTINGS))
    assert float(found[0].abs().min()) > 0
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-10, atol=0)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("shares", [(), (Share(0, 11, 16),)], ids=["once", "repeats"])
def test_the_row_before_is_that_of_the_process_before(world: int, shares: tuple[Share, ...]) -> None:
    """Guards: with the own last row in its place, the drift depended on the number of processes; without the shares of
    a file with `repeats` it was a row of another step."""
    for rank in range(world):
        mine = MicroBatches(
            rows=16 if shares else 11,
            seed=1,
            start_step=2,
            max_steps=5,
            global_batch=6,
            micro_batch=6 // world,
            rank=rank,
            world=world,
            shares=shares,
        )
        before = replace(mine, rank=(rank - 1) % world)
        for step, theirs in enumerate(before, 2):
            place = SimpleNamespace(
                batches=mine, group=Group(), state=SimpleNamespace(global_step=step), rows=range(11)
            )
            place.group.rank = rank
            assert StepTrainer.row_before(place) == theirs[-1]  # pyright: ignore[reportArgumentType]


def test_a_batch_of_one_row_is_refused() -> None:
    plain: dict[str, Any] = {"base_model": "m", "datasets": [{"path": "d"}], "max_steps": 1, "rl": "kto"}
    with pytest.raises(ValidationError, match="rl: kto needs a global_batch_size of at least 2"):
        JobSpec.model_validate(plain | {"global_batch_size": 1})
    JobSpec.model_validate(plain | {"global_batch_size": 3})


def test_a_set_with_one_kind_of_label_is_refused_on_a_machine(base: Path, tmp_path: Path) -> None:
    runs = preference_rows.runs("kto", base, tmp_path)
    records = [
        preference_rows.record(number, RowFormat.UNPAIRED_PREFERENCE) | {"label": True} for number in range(runs.rows)
    ]
    preference_rows.write(runs.dataset, records)
    with pytest.raises(PermanentError, match="every 'label' of the file is true"):
        runs.session(runs.spec(rl="kto", max_steps=1), decisions={1: Decision.STOP})
