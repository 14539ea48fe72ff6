"""Datasets whose rows an epoch has several times, or only in part."""

from __future__ import annotations

import json

import pytest

from tests.helpers.training_runs import TrainingRuns, differing
from worker.shared.checkpoint_file import CheckpointError, OtherRunError, check_recipe
from worker.shared.job_spec import ENCODING, VAL_SPLIT, JobSpec
from worker.shared.manifest import Recipe

FILE = {"path": "sha256:" + "0" * 64, "sha256": "0" * 64, "rows": 10}


def spec_of(*repeats: float, **keys: object) -> JobSpec:
    files = [FILE | {"repeats": times} for times in repeats]
    given = {"base_model": "org/model", "datasets": files, "num_epochs": 1, "global_batch_size": 2}
    return JobSpec.model_validate(given | keys)


@pytest.mark.parametrize(
    ("spec", "rows", "steps"),
    [
        (spec_of(1, 1), 20, 10),
        (spec_of(3, 1), 40, 20),
        (spec_of(0.25, 1), 13, 7),
        (spec_of(0.01), 1, 1),
        (spec_of(3, num_epochs=2), 30, 30),
        (spec_of(3, val_set_size=0.2), 24, 12),
        (spec_of(3, 1, val_set_size=0.25), 30, 15),
    ],
)
def test_rows_of_an_epoch_are_counted_at_submission(spec, rows, steps):
    assert (spec.train_rows, spec.total_steps) == (rows, steps)


def test_an_older_worker_and_an_older_checkpoint_know_no_repeats():
    usual = spec_of(1, 1)
    assert "repeats" not in usual.model_dump(mode="json")["datasets"][0]
    older = Recipe.model_validate(Recipe.of(usual).model_dump(exclude={"dataset_repeats"}))
    assert check_recipe(Recipe.of(usual), older) is None
    with pytest.raises(OtherRunError, match="dataset_repeats"):
        check_recipe(Recipe.of(spec_of(2, 0.5)), Recipe.of(spec_of(0.5, 2)))


@pytest.mark.parametrize("times", [0, -1, 1001, float("nan")])
def test_other_numbers_are_refused(times):
    with pytest.raises(ValueError, match="repeats"):
        spec_of(times)


def test_repeated_rows_survive_cuts_in_every_byte(base, tmp_path):
    """Guards: without `shares` in the sampler each row came once; with the epoch's length of the file, the checkpoint's
    position was refused as one that does not match its step."""
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps({"text": f"text number {n}"}) + "\n" for n in range(5)), encoding="utf-8")
    training = TrainingRuns(base=base, dataset=path, rows=5, folder=tmp_path)

    def job(times: float) -> JobSpec:
        files = ({"path": "chat", "rows": 5, "sha256": "0" * 64, "repeats": times},)
        more = {"global_batch_size": 2, "micro_batch_size": 2, "max_steps": 6, "val_set_size": 0.2}
        return training.spec(datasets=files, encoding=ENCODING, val_split=VAL_SPLIT, eval_steps=2, **more)

    whole, cut = training.run(job(2.5)), training.run(job(2.5), [2, 5])
    recipe = whole.manifest.recipe
    assert (recipe.train_rows, recipe.untrained_rows, recipe.epoch_rows) == (10, 0, 10)
    assert (whole.manifest.epoch, whole.manifest.index) == (1, 2)
    assert differing(whole.tensors, cut.tensors) == []
    assert cut.steps == whole.steps
    path = tmp_path / "run1" / "0.safetensors"
    with pytest.raises(CheckpointError, match="dataset_repeats"):
        training.session(job(2.0), resume=path)
