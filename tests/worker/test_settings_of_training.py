"""Schedules, AdamW's settings and forms of LoRA: each acts as named, survives a cut, and may not differ in between."""

from __future__ import annotations

import json
import math
import zipfile
from typing import Any

import pytest
from pydantic import ValidationError

from tests.helpers.training_runs import differing
from worker.shared import checkpoint_file
from worker.shared.checkpoint_file import CheckpointError
from worker.shared.job_spec import NUMERICS, JobSpec
from worker.shared.manifest import Recipe
from worker.training.interface import Decision, PermanentError

RATE = 1e-2
CASES: dict[str, dict[str, Any]] = {
    "cosine_with_min_lr": {"lr_scheduler": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.25}},
    "inverse_sqrt": {"lr_scheduler": "inverse_sqrt", "lr_scheduler_kwargs": {"timescale": 2}},
    "polynomial": {"lr_scheduler": "polynomial", "lr_scheduler_kwargs": {"power": 2.0, "lr_end": 1e-3}},
    "warmup_stable_decay": {
        "lr_scheduler": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": 4, "decay_type": "linear", "min_lr_ratio": 0.5},
    },
}
KNOBS: dict[str, dict[str, Any]] = {
    "adam": {"adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6},
    "rslora": {"peft_use_rslora": True},
    "layers": {"lora_layers_to_transform": (1,)},
}
TOGETHER = dict(zip(CASES, ("adam", "rslora", "layers", ""), strict=True))
"""Each knob runs with one of the schedules, because a run costs seconds."""
WARM = {"warmup_steps": 2, "max_steps": 8, "lora_dropout": 0.1, "numerics": NUMERICS}


def expected(schedule: str, step: int) -> float:
    """The rate in 0-based `step` of 8 with a warm-up of 2, from the formulas that papers give."""
    if step < 2:
        return RATE * (step + 1) / 2
    done = (step - 2) / 6
    if schedule == "cosine_with_min_lr":
        return RATE * (0.25 + 0.75 * 0.5 * (1 + math.cos(math.pi * done)))
    if schedule == "inverse_sqrt":
        return RATE * math.sqrt(2 / step)
    if schedule == "polynomial":
        return 1e-3 + (RATE - 1e-3) * (1 - done) ** 2
    return RATE if step < 4 else RATE * (1 - 0.5 * (step - 4) / 4)


@pytest.mark.parametrize("case", CASES)
def test_each_setting_survives_cuts_in_every_byte(training, case: str) -> None:
    """Guards: without `lr_scheduler_kwargs` in the trainer's settings transformers' defaults were taken; with a warm-up
    of the usual share the first rates differed."""
    knob = TOGETHER[case]
    spec = training.spec(**(WARM | CASES[case] | KNOBS.get(knob, {})))
    whole, cut = training.run(spec), training.run(spec, [1, 5])
    assert cut.trained.adapter_zip.read_bytes() == whole.trained.adapter_zip.read_bytes()
    assert cut.steps == whole.steps
    assert differing(cut.tensors, whole.tensors) == []
    assert [restore for hooks in cut.sessions for restore in hooks.restores] == [(n, "exact", "hf") for n in (0, 1, 5)]
    rates = [values["learning_rate"] for _, values in whole.steps]
    assert rates == pytest.approx([expected(case, step) for step in range(8)], rel=1e-9)
    if knob == "rslora":
        config = json.loads(zipfile.ZipFile(whole.trained.adapter_zip).read("adapter_config.json"))
        assert config["use_rslora"] is True
    if knob == "layers":
        assert {name.split(".layers.")[1].split(".")[0] for name in whole.tensors if ".layers." in name} == {"1"}


def test_settings_change_what_is_learned(training) -> None:
    """Guard: without the keys in the trainer's and PEFT's settings each run equalled the plain one."""
    plain = training.run(training.spec(max_steps=2)).trained.adapter_sha256
    for changes in KNOBS.values():
        assert training.run(training.spec(max_steps=2, **changes)).trained.adapter_sha256 != plain


def test_a_checkpoint_of_other_settings_is_refused(training) -> None:
    """Guard: without the fields of `Recipe` each of these was trained on."""
    _, hooks = training.session(training.spec(max_steps=4), decisions={2: Decision.SAVE_AND_STOP})
    half = training.folder / "half.safetensors"
    checkpoint_file.write(half, hooks.snapshots[-1].tensors, hooks.snapshots[-1].manifest)
    others = [{"adam_beta2": 0.95}, {"peft_use_rslora": True}, {"lora_layers_to_transform": (0,)}, {"warmup_steps": 1}]
    for changes in (*others, CASES["polynomial"]):
        with pytest.raises(CheckpointError, match=next(reversed(changes))):
            training.session(training.spec(max_steps=4, **changes), resume=half)


def test_a_checkpoint_that_names_none_of_them_has_the_usual_ones(training) -> None:
    """Guard: with None as the fields' default another value was no difference to an older checkpoint."""
    new = Recipe.of(training.spec(adam_beta1=0.8, peft_use_rslora=True, warmup_steps=3))
    plain = Recipe.of(training.spec())
    named = {"adam_beta1", "adam_beta2", "adam_epsilon", "peft_use_rslora", "lora_layers_to_transform"}
    named |= {"lr_scheduler_kwargs", "warmup_steps"}
    old = Recipe.model_validate(plain.model_dump(exclude=named))
    assert old == plain
    assert {name for name, *_ in old.differences(new)} == {"adam_beta1", "peft_use_rslora", "warmup_steps"}


def test_a_job_file_without_them_names_none(training) -> None:
    """Guard: an older worker refuses keys that it does not know."""
    keys = {key for case in (CASES | KNOBS).values() for key in case} | {"warmup_steps"}
    assert training.spec().model_dump(mode="json").keys() & keys == {"lr_scheduler"}
    whole = training.spec(**CASES["polynomial"], **KNOBS["adam"], warmup_steps=2)
    assert JobSpec.model_validate_json(whole.model_dump_json()) == whole


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr_scheduler": "cosine_with_min_lr"}, "lr_scheduler cosine_with_min_lr needs min_lr_rate"),
        ({"lr_scheduler": "warmup_stable_decay"}, "needs num_decay_steps"),
        ({"lr_scheduler_kwargs": {"power": 2}}, "lr_scheduler linear has no setting power; it has none"),
        (CASES["inverse_sqrt"] | {"lr_scheduler_kwargs": {"power": 2}}, "no setting power; it has timescale"),
        (CASES["polynomial"] | {"learning_rate": 1e-4}, "lr_end 0.001 must be below learning_rate 0.0001"),
        ({"warmup_steps": 3, "warmup_ratio": 0.1}, "warmup_ratio and warmup_steps exclude each other"),
        ({"adam_beta1": 1.0}, "adam_beta1"),
        ({"adam_epsilon": 0}, "adam_epsilon"),
        ({"lora_layers_to_transform": (-1,)}, "lora_layers_to_transform"),
        ({"lr_scheduler_kwargs": {"min_lr": 1}}, "min_lr"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_words(training, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        training.spec(**changes)


def test_warm_up_and_decay_must_fit_into_the_steps(training) -> None:
    """Guard: with the check in the job file itself, a chat with an adapter could not start: it has the keys of the job
    that trained, and one step."""
    decay = CASES["warmup_stable_decay"]
    assert training.spec(**decay, warmup_steps=5).schedule_fault == ""
    assert "warm-up of 6 and its decay of 4 steps do not fit" in training.spec(**decay, warmup_steps=6).schedule_fault
    for other in ({"chat": {"job": "job-1", "minutes": 5}}, {"evaluation": {"max_prompts": 1}, "val_set_size": 0.1}):
        training.spec(**decay, warmup_steps=5, **other)


def test_a_layer_that_the_model_lacks_is_refused(training) -> None:
    """Guard: PEFT adapted layer 0 and said nothing of layer 7."""
    with pytest.raises(PermanentError, match=r"names layer 7, but .* has 2"):
        training.session(training.spec(lora_layers_to_transform=(0, 7)))
