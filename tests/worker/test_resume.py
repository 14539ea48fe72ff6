"""The promise: a run that was cut ends in the same bytes as one that was not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.training_runs import differing
from worker.shared import checkpoint_file
from worker.training.interface import Decision

LORA = {"lora_dropout": 0.1}
QLORA = {"adapter": "qlora", "lora_dropout": 0.1}
EIGHT_BIT = {"optimizer": "adamw_8bit", "lora_r": 32, "lora_dropout": 0.1}
PAGED = {"adapter": "qlora", "optimizer": "paged_adamw_8bit", "lora_r": 32}
BUSY = {"val_set_size": 0.15, "eval_steps": 2, "sample_prompts": ("hello",), "sample_max_tokens": 4}


def assert_same(cut, whole):
    assert cut.trained.adapter_sha256 == whole.trained.adapter_sha256
    assert cut.steps == whole.steps
    assert differing(cut.tensors, whole.tensors) == []
    assert cut.trained.adapter_zip.read_bytes() == whole.trained.adapter_zip.read_bytes()
    assert cut.manifest.state == whole.manifest.state


@pytest.mark.parametrize(
    ("changes", "cuts"),
    [
        (LORA, [3, 7]),
        (LORA | {"num_epochs": 2, "max_steps": None, "lr_scheduler": "cosine", "warmup_ratio": 0.3}, [1, 5, 6, 11]),
        (QLORA, [4]),
        (EIGHT_BIT, [2, 5]),
        (PAGED, [5]),
        (LORA | BUSY, [4, 5]),
        (LORA | {"global_batch_size": 30, "micro_batch_size": 5, "max_steps": 4}, [1, 3]),
    ],
    ids=["lora", "epochs", "qlora", "adamw_8bit", "paged_qlora", "with_eval", "batch_beyond_epoch"],
)
def test_a_cut_run_ends_in_the_same_bytes(training, changes, cuts):
    """Every case fails without the optimiser state (moments zeroed); the dropout cases without the RNG; a loader
    that draws its seed from the global generator breaks the dropout cases; `start_step` 0 in the sampler breaks all.
    """
    spec = training.spec(**changes)
    whole, cut = training.run(spec), training.run(spec, cuts)
    assert_same(cut, whole)
    assert [restore for hooks in cut.sessions for restore in hooks.restores] == [
        (step, "exact", "hf") for step in [0, *cuts]
    ]
    assert cut.measures == whole.measures


def test_a_cut_run_ends_in_the_same_bytes_in_new_processes(training):
    """Fails when LoRA's targets are written in set order (drop `sorted` in export): hashing differs per process."""
    spec = training.spec(**LORA)
    whole = training.run(spec, [])
    _, hooks = training.session(spec, decisions={4: Decision.SAVE_AND_STOP})
    half = training.folder / "half.safetensors"
    checkpoint_file.write(half, hooks.snapshots[-1].tensors, hooks.snapshots[-1].manifest)
    script = """
import sys, json
from pathlib import Path
from tests.helpers.training_runs import TrainingRuns
from worker.shared.imports import quick_imports
from worker.training import unusable
unusable.hide_bitsandbytes()
with quick_imports():
    import worker.training.trainer
base, dataset, folder, half = map(Path, sys.argv[1:])
training = TrainingRuns(base=base, dataset=dataset, rows=23, folder=folder)
result, hooks = training.session(training.spec(lora_dropout=0.1), resume=half)
print(json.dumps([result.adapter_sha256, str(result.adapter_zip), hooks.steps, hooks.restores]))
"""
    folder = training.folder / "child"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script, training.base, training.dataset, folder, half],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    sha256, archive, steps, restores = json.loads(done.stdout.splitlines()[-1])
    assert restores == [[4, "exact", "hf"]]
    assert [tuple(step) for step in steps] == whole.steps[4:]
    assert sha256 == whole.trained.adapter_sha256
    assert Path(archive).read_bytes() == whole.trained.adapter_zip.read_bytes()


@pytest.mark.parametrize("changes", [LORA, QLORA], ids=["lora", "qlora"])
def test_evaluation_does_not_change_training(training, changes):
    """Fails without the RNG guard of `evaluation_mode`, and for qlora on CPUs with AVX512-BF16 without
    `keep_trainable_layout` (there bitsandbytes repacks the weights on the first evaluation and gradients are lost).
    """
    spec = training.spec(**(changes | {"max_steps": 5}))
    quiet = training.run(spec)
    saving = training.session(spec, decisions=dict.fromkeys(range(1, 5), Decision.SAVE))
    sampling = training.run(
        spec.model_copy(update={"sample_prompts": ("hi",), "sample_max_tokens": 4, "eval_steps": 1})
    )
    assert saving[0].adapter_sha256 == quiet.trained.adapter_sha256
    assert saving[1].steps == sampling.steps == quiet.steps
    assert len(sampling.sessions[0].samples) == 6


def test_nf4_gradients_are_those_of_the_model(training):
    """Fails without `keep_trainable_layout` (AVX512-BF16 only): the gradient norm falls to a third."""
    changes = {"max_steps": 1, "sample_prompts": ("hi",), "sample_max_tokens": 2}
    plain = training.run(training.spec(**changes)).steps[0][1]
    quantised = training.run(training.spec(**changes, adapter="qlora")).steps[0][1]
    assert quantised["loss"] == pytest.approx(plain["loss"], rel=0.02)
    assert quantised["grad_norm"] == pytest.approx(plain["grad_norm"], rel=0.15)


def test_the_micro_batch_changes_only_the_last_bits(training):
    """Fails when the loss is averaged per micro-batch instead of per trained token of the global batch."""
    runs = [training.run(training.spec(micro_batch_size=size)).steps for size in (1, 2, 4)]
    for one, two, four in zip(*runs, strict=True):
        assert one[1]["loss"] == pytest.approx(two[1]["loss"], rel=2e-4) == pytest.approx(four[1]["loss"], rel=2e-4)
        assert one[1]["grad_norm"] == pytest.approx(four[1]["grad_norm"], rel=2e-2)
        assert one[1]["tokens"] == two[1]["tokens"] == four[1]["tokens"]
        assert one[1]["learning_rate"] == two[1]["learning_rate"] == four[1]["learning_rate"]


def test_another_micro_batch_is_state_exact(training):
    """The label is honest: the same state on another split is not called exact."""
    spec = training.spec(**LORA)
    _, hooks = training.session(spec, decisions={4: Decision.SAVE_AND_STOP})
    half = training.folder / "half.safetensors"
    checkpoint_file.write(half, hooks.snapshots[-1].tensors, hooks.snapshots[-1].manifest)
    result, later = training.session(spec.model_copy(update={"micro_batch_size": 4}), resume=half)
    assert later.restores == [(4, "state-exact", "hf")]
    assert result.complete


def test_a_finished_run_exports_again_without_training(training):
    """A session that died between the last save and the export is made good by the next."""
    spec = training.spec(**LORA)
    whole = training.run(spec)
    result, hooks = training.session(spec, resume=whole.checkpoint, name="again")
    assert hooks.steps == hooks.snapshots == []
    assert result.complete
    assert result.adapter_sha256 == whole.trained.adapter_sha256


def test_stop_saves_nothing(training):
    result, hooks = training.session(training.spec(), decisions={2: Decision.STOP})
    assert (result.step, result.complete, hooks.snapshots) == (2, False, [])


def test_nothing_is_unpickled(training):
    """`load` and `restore` must not unpickle; an audit hook sees every `pickle.find_class`."""
    script = """
import sys
from pathlib import Path
from tests.helpers.training_runs import TrainingRuns
from worker.shared import checkpoint_file
from worker.shared.imports import quick_imports
from worker.training import state
with quick_imports():
    import worker.training.trainer
base, dataset, folder, half = map(Path, sys.argv[1:])
training = TrainingRuns(base=base, dataset=dataset, rows=23, folder=folder)
seen = []
real = state.restore
def watched(*args):
    watching.append(1)
    real(*args)
    watching.clear()
watching = []
def audit(event, args):
    if event == "pickle.find_class" and watching:
        seen.append(args)
sys.addaudithook(audit)
state.restore = watched
watching.append(1); checkpoint_file.load(half); watching.clear()
training.session(training.spec(lora_dropout=0.1, optimizer="adamw_8bit"), resume=half)
print("unpickled", seen)
"""
    spec = training.spec(lora_dropout=0.1, optimizer="adamw_8bit")
    _, hooks = training.session(spec, decisions={4: Decision.SAVE_AND_STOP})
    half = training.folder / "half.safetensors"
    checkpoint_file.write(half, hooks.snapshots[-1].tensors, hooks.snapshots[-1].manifest)
    done = subprocess.run(
        [sys.executable, "-c", script, training.base, training.dataset, training.folder, half],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.splitlines()[-1] == "unpickled []"
