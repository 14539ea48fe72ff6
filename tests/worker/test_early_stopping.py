"""Early stopping and the best adapter: the same decision and the same bytes wherever a run is cut."""

from __future__ import annotations

import zipfile
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load

from tests.helpers.training_runs import differing
from tests.worker.test_evaluation import Evaluations
from worker.shared import checkpoint_file
from worker.shared.checkpoint_header import (
    ADAPTER,
    BEST,
    CheckpointError,
    check_continues,
    check_parameters,
    read_header,
)
from worker.shared.early_stopping import may_end_at
from worker.shared.job_spec import NUMERICS
from worker.shared.messages import Origin
from worker.training.best import Best, answering
from worker.training.interface import Decision, PermanentError

STEEP: dict[str, Any] = {
    "learning_rate": 3.0,
    "lr_scheduler": "constant",
    "val_set_size": 0.2,
    "eval_steps": 1,
    "max_steps": 10,
    "numerics": NUMERICS,
}
"""The validation loss falls and rises in turn."""
EARLY = STEEP | {"early_stopping_patience": 2, "load_best_model_at_end": True}


def weights(outcome) -> dict[str, np.ndarray]:
    """The exported adapter."""
    return load(zipfile.ZipFile(outcome.trained.adapter_zip).read("adapter_model.safetensors"))


def test_a_job_stops_early_at_the_same_step_after_any_cut(training) -> None:
    """Guards: without the count in the checkpoint the cut run went on for longer; with the evaluation in the last
    checkpoint its bytes depended on where the run was cut; without `is_over` a session that was cut at the last step
    did one more."""
    spec = training.spec(**EARLY)
    whole = training.run(spec)
    losses = {step: values["eval_loss"] for step, values in whole.measures.items()}
    best = min(losses, key=lambda step: (losses[step], step))
    end = whole.trained.step
    assert whole.trained.complete
    assert end == best + 2 < spec.total_steps
    for cuts in ([1, end - 1], [end]):
        cut = training.run(spec, cuts)
        assert (cut.trained.step, cut.trained.complete) == (end, True)
        assert cut.trained.adapter_zip.read_bytes() == whole.trained.adapter_zip.read_bytes()
        assert differing(cut.tensors, whole.tensors) == []
        assert cut.manifest.state["best"] == whole.manifest.state["best"]
    card = zipfile.ZipFile(whole.trained.adapter_zip).read("README.md").decode()
    assert f"stopped early at step {end}: validation loss did not improve in 2 evaluations" in card


def test_a_job_ends_with_the_adapter_of_the_lowest_loss(training) -> None:
    """Guard: without `put_back` the adapter was that of the last step."""
    spec = training.spec(**STEEP, load_best_model_at_end=True)
    whole, cut = training.run(spec), training.run(spec, [4])
    best = whole.manifest.state["best"]["step"]
    assert whole.trained.step == spec.total_steps > best
    assert cut.trained.adapter_zip.read_bytes() == whole.trained.adapter_zip.read_bytes()
    assert differing(cut.tensors, whole.tensors) == []
    short = training.run(training.spec(**STEEP | {"max_steps": best}))
    assert all((weights(short)[name] == array).all() for name, array in weights(whole).items())
    kept = {name.removeprefix(BEST): array for name, array in whole.tensors.items() if name.startswith(BEST)}
    assert kept.keys() == {n.removeprefix(ADAPTER) for n in whole.tensors if n.startswith(ADAPTER)}
    for name, array in kept.items():
        assert (weights(whole)[name.replace(".default", "")] == array).all()
    swapped = answering(whole.tensors)
    assert not any(name.startswith(BEST) for name in swapped)
    assert all((swapped[ADAPTER + name] == array).all() for name, array in kept.items())


def test_best_tensors_are_checked_by_the_server(training) -> None:
    """Guard: without the check any tensor could lie in a checkpoint under such a name."""
    spec = training.spec(**STEEP | {"max_steps": 2, "eval_steps": 1}, load_best_model_at_end=True)
    _, hooks = training.session(spec, decisions={1: Decision.SAVE, 2: Decision.SAVE})
    files = []
    for number, snapshot in enumerate(hooks.snapshots):
        files.append(training.folder / f"{number}.safetensors")
        checkpoint_file.write(files[-1], snapshot.tensors, snapshot.manifest)
    first, second = (read_header(file.read_bytes(), file.stat().st_size) for file in files)
    check_parameters(first)
    check_parameters(second)
    check_continues(second, first)  # the best adapter came with the first evaluation
    with pytest.raises(CheckpointError, match="missing"):
        check_continues(first, second)
    name = next(name for name in second.tensors if name.startswith(BEST))
    second.tensors[BEST + "other"] = second.tensors.pop(name)
    with pytest.raises(CheckpointError, match=r"best\.other is F32"):
        check_parameters(second)


def test_of_two_equal_losses_the_first_is_the_best() -> None:
    """Guards: with `>` in the comparison the later one was taken; without `seen` a repeated evaluation counted."""
    model = torch.nn.Linear(2, 2)
    best = Best(patience=2, keeps=True)
    for step, loss in ((1, 2.0), (2, 1.0), (3, 1.0), (3, 1.0)):
        best = best.after(step, loss, model)
    assert (best.step, best.loss, best.misses, best.ends) == (2, 1.0, 1, False)
    best = best.after(4, float("nan"), model)
    assert (best.step, best.misses, best.ends) == (2, 2, True)
    with pytest.raises(PermanentError, match="no trained token"):
        best.after(5, None, model)


def test_a_job_may_end_early_only_after_its_patience(training) -> None:
    spec = training.spec(**STEEP | {"eval_steps": 3, "max_steps": 30}, early_stopping_patience=2)
    assert [step for step in range(30) if may_end_at(spec, step)] == [9, 12, 15, 18, 21, 24, 27]
    assert not may_end_at(training.spec(max_steps=30), 9)


def test_a_clone_may_go_on_where_the_original_stopped_early(training) -> None:
    """Guard: as a field that may not change, the patience ended each clone of such a job where it began."""
    first = training.run(training.spec(**EARLY))
    end = first.trained.step
    origin = Origin(job="job", fence=1, step=end)
    patient = training.spec(**EARLY | {"early_stopping_patience": 4})
    result, hooks = training.session(patient, resume=first.checkpoint, name="clone", job="clone", origin=origin)
    assert [step for step, _ in hooks.steps][:1] == [end + 1]
    assert result.complete
    with pytest.raises(CheckpointError, match="early_stopping_patience"):
        training.session(patient, resume=first.checkpoint)


def test_an_evaluation_asks_the_adapter_that_the_job_ended_with(training) -> None:
    """Guards: without `answering` the adapter of the last step answered; with the probe of the evaluated checkpoint an
    evaluation that was cut could not go on."""
    spec = training.spec(**STEEP | {"val_set_size": 0.6, "max_steps": 8, "encoding": 3}, load_best_model_at_end=True)
    whole = training.run(spec)
    best = whole.manifest.state["best"]["step"]
    assert best < 8
    evaluation = Evaluations(training, spec, whole.checkpoint)
    origin = Origin(job="job", fence=1, step=8)
    _, first = evaluation.session(decisions={1: Decision.SAVE_AND_STOP}, origin=origin)
    own = first.snapshots[-1].tensors
    for name, array in whole.tensors.items():
        if name.startswith(BEST):
            assert (own[ADAPTER + name.removeprefix(BEST)] == array).all()
    result, second = evaluation.session(evaluation.saved(first))
    assert result.complete
    assert second.restores[0][:2] == (1, "exact")
