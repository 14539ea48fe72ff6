"""`trainhop import`: every key of an axolotl file is translated or named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import Result

from orchestrator.entrypoints.cli.axolotl import NotTranslatableError, translate
from orchestrator.entrypoints.cli.client import CommandError
from trainhop.errors import Error
from worker.shared.job_spec import JobSpec

QLORA: dict[str, Any] = {
    "base_model": "org/Model-8B",
    "revision_of_model": "main",
    "model_type": "AutoModelForCausalLM",
    "load_in_4bit": True,
    "load_in_8bit": False,
    "datasets": [{"path": "rows.jsonl", "ds_type": "json", "type": "chat_template", "field_messages": "turns"}],
    "adapter": "qlora",
    "lora_model_dir": "./adapter",
    "lora_r": 32,
    "lora_alpha": 16,
    "lora_target_linear": True,
    "peft_use_rslora": True,
    "sample_packing": True,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "num_epochs": 3,
    "optimizer": "paged_adamw_32bit",
    "lr_scheduler": "cosine",
    "cosine_min_lr_ratio": 0.1,
    "learning_rate": 0.0002,
    "warmup_steps": 10,
    "adam_beta2": 0.95,
    "bf16": "auto",
    "flash_attention": True,
    "output_dir": "./out",
    "wandb_project": "runs",
    "evals_per_epoch": 4,
    "unheard_of": 1,
}


def test_what_has_a_counterpart_is_the_same_there() -> None:
    found = translate(QLORA)
    spec = JobSpec.model_validate(found.spec)
    assert (spec.base_model, spec.adapter, spec.lora_target_modules) == ("org/Model-8B@main", "qlora", "all-linear")
    assert (spec.global_batch_size, spec.micro_batch_size) == (8, 2)
    assert (spec.lr_scheduler, spec.lr_scheduler_kwargs.min_lr_rate) == ("cosine_with_min_lr", 0.1)
    assert (spec.warmup_steps, spec.adam_beta2, spec.peft_use_rslora, spec.lora_r) == (10, 0.95, True, 32)
    assert found.spec["datasets"] == [{"path": "rows.jsonl", "type": "messages", "field_messages": "turns"}]
    named = {"optimizer", "sample_packing", "evals_per_epoch", "unheard_of"}
    assert found.different.keys() == named
    assert found.needless.keys() == {"model_type", "bf16", "flash_attention", "output_dir", "wandb_project"}


def test_a_template_of_its_own_is_taken_over() -> None:
    own = {"chat_template": "jinja", "chat_template_jinja": "{{ messages[0].content }}"}
    for keys in (own, {"chat_template": "chatml"}, {"chat_template": "tokenizer_default"}):
        found = translate(QLORA | keys)
        assert keys.items() <= found.spec.items()
        JobSpec.model_validate(found.spec)


def test_settings_of_the_adapter_keep_their_names() -> None:
    settings = {
        "loraplus_lr_ratio": 16,
        "peft_use_dora": True,
        "lora_target_modules": r"model\.layers\.\d+\.(mlp|self_attn)\.(up|q)_proj",
        "lora_target_linear": None,
        "neftune_noise_alpha": 5,
        "peft_trainable_token_indices": [3, 4],
        "tokens": ["<call>", "</call>"],
        "added_tokens_overrides": {"128002": "<think>"},
        "early_stopping_patience": 3,
        "load_best_model_at_end": True,
        "val_set_size": 0.1,
        "metric_for_best_model": "eval_loss",
    }
    found = translate(QLORA | settings)
    spec = JobSpec.model_validate(found.spec)
    listed = {"peft_trainable_token_indices", "tokens"}
    for key in settings.keys() - {"lora_target_linear", "metric_for_best_model"} - listed:
        assert getattr(spec, key) == settings[key], key
        assert key not in found.different
    assert spec.peft_trainable_token_indices == (3, 4)
    assert spec.tokens == ("<call>", "</call>")
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    found = translate(QLORA | {"lora_target_parameters": experts, "lora_dropout": 0})
    assert sorted(JobSpec.model_validate(found.spec).lora_target_parameters) == sorted(experts)
    assert translate(QLORA | {"noisy_embedding_alpha": 5}).spec["neftune_noise_alpha"] == 5


def test_a_share_of_warm_up_is_a_share() -> None:
    """Seen in a published file: transformers takes `warmup_steps` below 1 as a share."""
    assert JobSpec.model_validate(translate(QLORA | {"warmup_steps": 0.1}).spec).warmup_ratio == 0.1


def test_each_of_several_files_is_a_dataset() -> None:
    """Guard: the second file was named, and its rows were lost."""
    several = {"path": "json", "data_files": ["a.jsonl", "b.jsonl"], "type": "alpaca"}
    found = translate(QLORA | {"datasets": [several, {"path": "org/rows", "name": "en", "split": "train[:9]"}]})
    rows = {"type": "alpaca"}
    assert found.spec["datasets"] == [
        {"path": "a.jsonl", **rows},
        {"path": "b.jsonl", **rows},
        {"path": "org/rows", "split": "train[:9]", "name": "en"},
    ]


@pytest.mark.parametrize(
    ("given", "columns", "named"),
    [
        (
            {
                "type": "chat_template",
                "field_messages": "messages",
                "message_field_role": "who",
                "message_property_mappings": {"content": "says", "role": "role"},
                "roles": {"user": ["kim"]},
            },
            {"type": "messages", "message_property_mappings": {"content": "says"}, "roles": {"user": ["kim"]}},
            set(),
        ),
        (
            {"type": {"field_instruction": "q", "field_output": "a", "field_system": "system", "format": "[I] {x}"}},
            {"type": "alpaca", "field_instruction": "q", "field_output": "a"},
            {"type.format"},
        ),
        ({"type": "completion", "field": "body"}, {"type": "text", "field": "body"}, set()),
        ({"type": "alpaca", "field_messages": "turns"}, {"type": "alpaca"}, {"field_messages"}),
        ({"message_field_training": "learn", "field": "text"}, {}, {"message_field_training"}),
    ],
)
def test_names_of_columns_are_those_of_a_dataset(given, columns, named) -> None:
    found = translate(QLORA | {"datasets": [{"path": "rows.jsonl"} | given]})
    assert found.spec["datasets"] == [{"path": "rows.jsonl"} | columns]
    assert {key for key in found.different if key.startswith("datasets")} == {f"datasets[0].{key}" for key in named}
    JobSpec.model_validate(found.spec)


NAMES = st.one_of(st.sampled_from(sorted(QLORA)), st.text(min_size=1, max_size=8))
VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.none()))


@given(st.dictionaries(NAMES, VALUES, max_size=12))
def test_no_key_is_dropped_unsaid(changes: dict[str, Any]) -> None:
    """Guard: without `_name_the_rest` an unknown key was in neither of the three places."""
    config = QLORA | changes
    try:
        found = translate(config)
    except NotTranslatableError:
        return
    read = {"revision_of_model", "load_in_4bit", "lora_target_linear", "gradient_accumulation_steps", "batch_size"}
    read |= {"cosine_min_lr_ratio"}
    for key, value in config.items():
        is_off = value is None or value is False or value in ("", [])
        is_share = key == "warmup_steps" and "warmup_ratio" in found.spec
        assert is_off or is_share or key in found.spec.keys() | found.different.keys() | found.needless.keys() | read, (
            key
        )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rl": "grpo"}, "rl: grpo samples answers while it trains, .* could not end in the same bytes"),
        ({"rl": "ipo"}, "rl: 'ipo' is not supported; there are dpo"),
        ({"adapter": None}, "a file without adapter is not LoRA"),
        ({"adapter": "ia3"}, "adapter: ia3 is not LoRA"),
        ({"micro_batch_size": "2"}, "micro_batch_size must be a whole number"),
        ({"peft_init_lora_weights": "pissa"}, "pissa cannot be used: it changes the weights of the base model"),
        ({"loftq_config": {"loftq_bits": 4}}, "loftq_config cannot be used: it changes the weights"),
        ({"datasets": ["rows.jsonl"]}, "datasets\\[0\\] is not a mapping"),
    ],
)
def test_other_training_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(NotTranslatableError, match=words):
        translate(QLORA | changes)


@pytest.mark.parametrize(
    ("changes", "key", "value"),
    [
        ({"optimizer": "lion_8bit"}, "optimizer", "adamw_torch"),
        ({"lr_scheduler": "rex", "cosine_min_lr_ratio": None}, "lr_scheduler", "cosine"),
        ({"peft_trainable_token_indices": {"embed_tokens": [1]}}, "peft_trainable_token_indices", None),
        ({"peft_init_lora_weights": "gaussian"}, "peft_init_lora_weights", None),
        ({"metric_for_best_model": "accuracy"}, "metric_for_best_model", None),
        ({"eval_steps": 0.1}, "eval_steps", None),
        ({"chat_template": "llama3"}, "chat_template", None),
    ],
)
def test_what_is_replaced_is_said(changes: dict[str, Any], key: str, value: Any) -> None:
    found = translate(QLORA | changes)
    assert found.spec.get(key) == value
    assert key in found.different


def test_the_command_writes_a_job_file_that_says_what_differs(typed: Callable[..., Result], tmp_path: Path) -> None:
    """Guards: without the look at the file that exists, a second import replaced it; without `check` a file that no
    server accepts was written."""
    config, file = tmp_path / "axolotl.yml", tmp_path / "job.yaml"
    config.write_text(yaml.safe_dump(QLORA))
    done = typed("import", str(config), str(file))
    assert done.stdout.strip() == str(file)
    assert "sample_packing: rows are not packed" in done.stderr
    assert "# unheard_of: has no counterpart" in file.read_text()
    assert JobSpec.model_validate(yaml.safe_load(file.read_text())) == JobSpec.model_validate(translate(QLORA).spec)
    with pytest.raises(CommandError, match="--force"):
        typed("import", str(config), str(file))
    config.write_text(yaml.safe_dump(QLORA | {"lora_r": 0}))
    with pytest.raises(Error, match="lora_r"):
        typed("import", str(config), str(tmp_path / "other.yaml"))
    assert not (tmp_path / "other.yaml").exists()


def test_which_turns_are_trained_on_is_translated() -> None:
    """Names of keys that are read anyway are not differences."""
    data = {"path": "x", "type": "chat_template", "roles_to_train": ["gpt", "tool"], "train_on_eos": "last"}
    usual = {"message_field_training": "training", "field_tools": "tools", "field_thinking": "reasoning_content"}
    found = translate(QLORA | {"datasets": [data | usual]})
    spec = JobSpec.model_validate(found.spec)
    assert (spec.datasets[0].roles_to_train, spec.datasets[0].train_on_eos) == (("gpt", "tool"), "last")
    assert not [key for key in found.different if key.startswith("datasets")]
    other = {"message_field_training": "learn", "message_field_training_detail": "parts", "train_on_eos": "none"}
    found = translate(QLORA | {"datasets": [data | other | {"roles_to_train": ["narrator"]}]})
    assert found.different.keys() >= {f"datasets[0].{key}" for key in ("roles_to_train", *other)}
    found = translate(QLORA | {"train_on_inputs": True, "datasets": [data]})
    assert JobSpec.model_validate(found.spec).train_on_inputs
    assert found.different["datasets[0].roles_to_train"] == "train_on_inputs trains on all turns"
