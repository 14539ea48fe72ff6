"""Patterns and tokens of a job file are compared with its base model before a machine is taken."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.domain.errors import InvalidError
from orchestrator.ports.catalog import BaseModel
from orchestrator.services.job_checks import refuse_what_the_model_lacks
from worker.shared.job_spec import JobSpec
from worker.shared.memory_estimate import Shape


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"lora_target_modules": r".*\.query"},
            "matches none of the model's modules; modules have names like model.layers",
        ),
        ({"lora_target_modules": ".*"}, "also matches model.embed_tokens, which is not a linear layer"),
        ({"lora_target_modules": r"(\w+\.?)+x"}, "takes too long"),
        ({"peft_trainable_token_indices": [1, 256]}, "/peft_trainable_token_indices/1: the base model has 256 tokens"),
    ],
)
def test_patterns_and_tokens_are_compared_with_the_model(changes: dict[str, Any], words: str) -> None:
    """Guard: without the comparison each of them took a machine, and the third one ran until its end."""
    spec = JobSpec.model_validate({"base_model": "m", "datasets": [{"path": "rows"}], "max_steps": 1, **changes})
    layers = [f"model.layers.{number}.self_attn.{name}" for number in range(2) for name in ("q_proj", "v_proj")]
    modules = frozenset({*layers, "model.embed_tokens", "model.norm"})
    shape = Shape.of(
        {"num_attention_heads": 4, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "vocab_size": 256}
    )
    with pytest.raises(InvalidError, match=words):
        refuse_what_the_model_lacks(spec, BaseModel(name="m", modules=modules, shape=shape))
    good = spec.model_copy(update={"lora_target_modules": r".*\.[qv]_proj", "peft_trainable_token_indices": (255,)})
    refuse_what_the_model_lacks(good, BaseModel(name="m", modules=modules, shape=shape))
