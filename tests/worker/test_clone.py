"""A clone begins with another job's checkpoint: the same file gives the same bytes, and what may change acts from there
on."""

import pytest

from tests.helpers.training_runs import differing
from worker.shared import checkpoint_file
from worker.shared.checkpoint_file import CheckpointError
from worker.shared.messages import Origin
from worker.training.distributed import job_json, job_of
from worker.training.interface import Decision

SPEC = {"lora_dropout": 0.1, "lr_scheduler": "cosine", "warmup_ratio": 0.2}


def saved(training, hooks, name):
    path = training.folder / f"{name}.safetensors"
    checkpoint_file.write(path, hooks.snapshots[-1].tensors, hooks.snapshots[-1].manifest)
    return path


@pytest.fixture
def half(training):
    """What job `job` had saved after its fourth step."""
    _, hooks = training.session(training.spec(**SPEC), decisions={4: Decision.SAVE_AND_STOP})
    return saved(training, hooks, "half")


ORIGIN = Origin(job="job", fence=1, step=4)


def test_a_clone_with_the_same_file_ends_in_the_bytes_of_the_original(training, half):
    """The promise. Guard: with a fresh optimiser, schedule or sampler in the clone every assertion fails."""
    whole = training.run(training.spec(**SPEC))
    result, hooks = training.session(training.spec(**SPEC), resume=half, name="clone", job="clone", origin=ORIGIN)
    assert hooks.restores == [(4, "exact", "hf")]
    assert hooks.steps == whole.steps[4:]
    assert result.adapter_sha256 == whole.trained.adapter_sha256
    assert result.adapter_zip.read_bytes() == whole.trained.adapter_zip.read_bytes()
    assert differing(hooks.snapshots[-1].tensors, whole.tensors) == []
    assert hooks.snapshots[-1].manifest.state == whole.manifest.state
    assert hooks.snapshots[-1].manifest.job == "clone"


def test_what_a_clone_changes_acts_from_its_first_step_on(training, half):
    """Guard: without `reschedule` the clone went on with the original's rate; cut once more it must not change
    again."""
    changes = {"learning_rate": 3e-3, "max_steps": 12, "lr_scheduler": "linear", "weight_decay": 0.1}
    changes["loraplus_lr_ratio"] = 8.0  # the original had one rate for all, and fewer groups
    spec = training.spec(**(SPEC | changes))
    result, hooks = training.session(spec, resume=half, name="clone", job="clone", origin=ORIGIN)
    fresh = training.run(spec)
    assert [step for step, _ in hooks.steps] == list(range(5, 13))
    rates = [values["learning_rate"] for _, values in fresh.steps]
    assert [values["learning_rate"] for _, values in hooks.steps] == rates[4:]
    assert [values["batch_crc32"] for _, values in hooks.steps] == [v["batch_crc32"] for _, v in fresh.steps[4:]]
    groups = hooks.snapshots[-1].manifest.state["groups"]
    assert (groups[0]["weight_decay"], groups[2]["initial_lr"]) == (0.1, 8 * 3e-3)

    _, first = training.session(
        spec, resume=half, decisions={7: Decision.SAVE_AND_STOP}, name="cut", job="clone", origin=ORIGIN
    )
    again, second = training.session(spec, resume=saved(training, first, "own"), name="cut", job="clone")
    assert first.steps + second.steps == hooks.steps
    assert again.adapter_sha256 == result.adapter_sha256


def test_a_checkpoint_that_the_assignment_does_not_name_is_refused(training, half):
    """Guard: without `check_owner` in `_read_checkpoint` each of these trained on."""
    spec = training.spec(**SPEC)
    with pytest.raises(CheckpointError, match="belongs to job job, not to clone"):
        training.session(spec, resume=half, job="clone")
    for changes in ({"job": "another"}, {"fence": 2}, {"step": 5}):
        with pytest.raises(CheckpointError, match=r"is that of job job, fence 1, step 4, but this job starts from"):
            training.session(spec, resume=half, job="clone", origin=ORIGIN.model_copy(update=changes))


def test_a_clone_may_not_change_what_the_state_depends_on(training, half):
    """The server refuses these with a pointer; the worker does not rely on it."""
    for changes in ({"lora_r": 8}, {"seed": 1}, {"optimizer": "adamw_8bit"}, {"global_batch_size": 8}):
        with pytest.raises(CheckpointError, match=f"belongs to another run: .*{next(iter(changes))}"):
            training.session(training.spec(**(SPEC | changes)), resume=half, job="clone", origin=ORIGIN)


def test_every_process_of_a_session_knows_the_whole_job(training, tmp_path):
    """Guard: without the folder of the base model in `job_json` every further process downloaded it for itself,
    unwatched."""
    from worker.training.interface import TrainingJob

    job = TrainingJob(
        job="clone",
        fence=1,
        spec=training.spec(),
        datasets=(training.dataset,),
        resume=None,
        work_dir=tmp_path,
        origin=ORIGIN,
        base_folder=training.base,
    )
    assert job_of(job_json(job), tmp_path) == job
