"""Schedules, AdamW's settings and forms of LoRA: each acts as named, survives a cut, and may not differ in between."""

from __future__ import annotations

import json
import math
import zipfile
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import load

from tests.helpers.training_runs import differing
from worker.shared import checkpoint_file
from worker.shared.checkpoint_file import CheckpointError
from worker.shared.job_spec import NUMERICS, JobSpec
from worker.shared.manifest import Recipe
from worker.training.interface import Decision, PermanentError
from worker.training.neftune import row_noise

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
    "loraplus": {"loraplus_lr_ratio": 8.0},
    "dora": {"peft_use_dora": True},
    "pattern": {"lora_target_modules": r"model\.layers\.1\..*\.(q|v)_proj"},
    "neftune": {"neftune_noise_alpha": 5.0},
    "tokens": {"peft_trainable_token_indices": (40, 41)},
}
TOGETHER = dict(zip(CASES, ("adam loraplus", "rslora dora", "layers neftune", "pattern tokens"), strict=True))
"""Knobs run with one of the schedules, because a run costs seconds."""
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
    knobs = TOGETHER[case].split()
    changes = {key: value for knob in knobs for key, value in KNOBS[knob].items()}
    spec = training.spec(**(WARM | CASES[case] | changes))
    whole, cut = training.run(spec), training.run(spec, [1, 5])
    assert cut.trained.adapter_zip.read_bytes() == whole.trained.adapter_zip.read_bytes()
    assert cut.steps == whole.steps
    assert differing(cut.tensors, whole.tensors) == []
    assert [restore for hooks in cut.sessions for restore in hooks.restores] == [(n, "exact", "hf") for n in (0, 1, 5)]
    rates = [values["learning_rate"] for _, values in whole.steps]
    assert rates == pytest.approx([expected(case, step) for step in range(8)], rel=1e-9)
    config = json.loads(zipfile.ZipFile(whole.trained.adapter_zip).read("adapter_config.json"))
    assert (config["use_rslora"], config["use_dora"]) == ("rslora" in knobs, "dora" in knobs)
    if "layers" in knobs:
        assert {name.split(".layers.")[1].split(".")[0] for name in whole.tensors if ".layers." in name} == {"1"}
    if "pattern" in knobs:
        assert config["target_modules"] == KNOBS["pattern"]["lora_target_modules"]
        assert {name.split(".")[7] for name in whole.tensors if ".lora_A." in name} == {"q_proj", "v_proj"}
    if "tokens" in knobs:
        assert config["trainable_token_indices"] == [40, 41]
        name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
        exported = load(zipfile.ZipFile(whole.trained.adapter_zip).read("adapter_model.safetensors"))
        assert (exported[name] == whole.tensors[f"adapter.{name}.default"]).all()


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
    others += [KNOBS[name] for name in ("loraplus", "dora", "pattern", "neftune", "tokens")]
    for changes in (*others, CASES["polynomial"]):
        with pytest.raises(CheckpointError, match=next(reversed(changes))):
            training.session(training.spec(max_steps=4, **changes), resume=half)


def test_a_checkpoint_that_names_none_of_them_has_the_usual_ones(training) -> None:
    """Guard: with None as the fields' default another value was no difference to an older checkpoint."""
    new = Recipe.of(training.spec(adam_beta1=0.8, peft_use_rslora=True, warmup_steps=3))
    plain = Recipe.of(training.spec())
    named = {"adam_beta1", "adam_beta2", "adam_epsilon", "peft_use_rslora", "lora_layers_to_transform"}
    named |= {"lr_scheduler_kwargs", "warmup_steps", "loraplus_lr_ratio", "loraplus_lr_embedding", "peft_use_dora"}
    named |= {
        "neftune_noise_alpha",
        "peft_trainable_token_indices",
        "early_stopping_patience",
        "load_best_model_at_end",
    }
    old = Recipe.model_validate(plain.model_dump(exclude=named))
    assert old == plain
    assert {name for name, *_ in old.differences(new)} == {"adam_beta1", "peft_use_rslora", "warmup_steps"}


def test_a_job_file_without_them_names_none(training) -> None:
    """Guard: an older worker refuses keys that it does not know."""
    keys = {key for case in (CASES | KNOBS).values() for key in case} | {"warmup_steps"}
    keys |= {"loraplus_lr_embedding", "early_stopping_patience", "load_best_model_at_end"}
    assert training.spec().model_dump(mode="json").keys() & keys == {"lr_scheduler", "lora_target_modules"}
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
        ({"loraplus_lr_embedding": 1e-5}, "loraplus_lr_embedding needs loraplus_lr_ratio"),
        ({"loraplus_lr_ratio": 0}, "loraplus_lr_ratio"),
        (KNOBS["dora"] | {"backend": "unsloth"}, "backend unsloth does not train with peft_use_dora; set backend to"),
        (KNOBS["pattern"] | {"backend": "unsloth"}, "does not train with a pattern in lora_target_modules"),
        (KNOBS["pattern"] | {"lora_layers_to_transform": (1,)}, "needs a list of lora_target_modules"),
        ({"lora_target_modules": "(q_proj"}, r"must be a regular expression: missing \)"),
        ({"lora_target_modules": "a{9999999999999}"}, "must be a regular expression"),
        ({"lora_target_modules": "q" * 501}, "at most 500 characters"),
        ({"peft_trainable_token_indices": (3, 3)}, "must not name a number twice"),
        ({"early_stopping_patience": 2}, "early_stopping_patience needs validation rows; set val_set_size"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end needs validation rows"),
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


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (r".*\.query", "matches none of the model's modules; modules have names like model.layers.0.mlp.down_proj, "),
        (r".*", "also matches lm_head, which is not a linear layer inside the model"),
        (r".*embed.*|.*q_proj", "also matches model.embed_tokens"),
        (r".*self_attn", "also matches model.layers.0.self_attn, which is not a linear layer"),
        (r"(\w+\.?)+x", "takes too long .*write it without a repetition inside a repetition"),
    ],
)
def test_a_pattern_for_the_wrong_modules_is_refused(training, pattern: str, words: str) -> None:
    """Guard: without the check PEFT's own words came for some, and the last one took hours."""
    with pytest.raises(PermanentError, match=words):
        training.session(training.spec(lora_target_modules=pattern))


def test_a_token_that_the_model_lacks_is_refused(training) -> None:
    """Guard: without the check PyTorch said that an index is out of range."""
    with pytest.raises(PermanentError, match=r"names token 5000, but .* has \d+"):
        training.session(training.spec(peft_trainable_token_indices=(1, 5000)))


def test_matrices_b_have_their_own_rate(training) -> None:
    """Guard: with one rate for all groups B moved as in the plain job. AdamW's first step is the rate itself."""
    moved = {}
    for ratio in (1.0, 8.0):
        spec = training.spec(max_steps=1, learning_rate=1e-3, numerics=NUMERICS, loraplus_lr_ratio=ratio)
        tensors = training.run(spec).tensors
        moved[ratio] = max(abs(a).max() for name, a in tensors.items() if "adapter." in name and ".lora_B." in name)
    assert moved[8.0] == pytest.approx(8e-3, rel=1e-3)
    assert moved[1.0] == pytest.approx(1e-3, rel=1e-3)


def test_rates_of_an_8_bit_optimiser_survive_a_cut(training) -> None:
    spec = training.spec(max_steps=3, loraplus_lr_ratio=8.0, optimizer="adamw_8bit")
    whole, cut = training.run(spec), training.run(spec, [1])
    assert differing(cut.tensors, whole.tensors) == []
    assert [group["lr"] for group in cut.manifest.state["groups"]] == [g["lr"] for g in whole.manifest.state["groups"]]


def test_noise_depends_on_step_and_row_alone(training) -> None:
    """Guards: with a draw from the model's generator the micro-batch changed the noise; without the probe's switch a
    restored session failed its probe."""
    tokens = np.array([5, 6, 7])
    noise = row_noise(tokens, 64, alpha=5.0, seed=1, step=3)
    assert noise.shape == (3, 64)
    assert abs(noise).max() == pytest.approx(5 / math.sqrt(3 * 64), rel=0.05)
    assert abs(noise.mean()) < 0.05
    assert (noise == row_noise(tokens, 64, alpha=5.0, seed=1, step=3)).all()
    for seed, step, row in ((2, 3, tokens), (1, 4, tokens), (1, 3, tokens[::-1])):
        assert (noise != row_noise(row, 64, alpha=5.0, seed=seed, step=step)).any()
    losses = [
        [values["loss"] for _, values in training.run(spec).steps]
        for size in (1, 4)
        for spec in [training.spec(max_steps=2, micro_batch_size=size, neftune_noise_alpha=20.0)]
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
