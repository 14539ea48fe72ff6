"""What an adapter is made of, and the library that trains it: a part of the job file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from worker.shared.module_patterns import ALL_LINEAR, MAX_PATTERN, valid
from worker.shared.new_tokens import NewTokens
from worker.shared.wire import NonBlank

Layer = Annotated[int, Field(ge=0, lt=10_000)]
MAX_LAYERS = 1_000
Token = Annotated[int, Field(ge=0, lt=2**31)]
MAX_TOKENS = 1_000
"""Tokens that a job may train the embeddings of."""


Parameter = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.]+$")]
MAX_PARAMETERS = 64


def once(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """The numbers themselves. Raises `ValueError` if one is there twice."""
    if len(set(numbers)) < len(numbers):
        raise ValueError("must not name a number twice")
    return numbers


def in_order(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, sorted. Raises `ValueError` if one is there twice."""
    if len(set(names)) < len(names):
        raise ValueError("must not name a parameter twice")
    return tuple(sorted(names))


class AdapterSettings(NewTokens):
    """Keys of the job file, with the names of axolotl. What is at its default is not named: older workers refuse it."""

    backend: Literal["auto", "hf", "unsloth"] = "auto"

    adapter: Literal["lora", "qlora"] = "lora"
    lora_r: Annotated[int, Field(ge=1, le=1024)] = 16
    lora_alpha: Annotated[float, Field(gt=0, le=4096)] = 32
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    lora_target_modules: (
        Annotated[tuple[NonBlank, ...], Field(min_length=1)]
        | Annotated[str, Field(max_length=MAX_PATTERN), BeforeValidator(valid)]
    ) = ALL_LINEAR
    lora_layers_to_transform: Annotated[tuple[Layer, ...], Field(max_length=MAX_LAYERS)] = Field(
        default=(), exclude_if=lambda layers: not layers
    )
    lora_target_parameters: Annotated[
        tuple[Parameter, ...], Field(max_length=MAX_PARAMETERS), AfterValidator(in_order)
    ] = Field(default=(), exclude_if=lambda names: not names)
    peft_use_rslora: bool = Field(default=False, exclude_if=lambda asked: not asked)
    peft_use_dora: bool = Field(default=False, exclude_if=lambda asked: not asked)
    peft_trainable_token_indices: Annotated[tuple[Token, ...], Field(max_length=MAX_TOKENS), AfterValidator(once)] = (
        Field(default=(), exclude_if=lambda tokens: not tokens)
    )

    @model_validator(mode="after")
    def _one_choice_of_layers(self) -> AdapterSettings:
        if self.module_pattern and self.lora_layers_to_transform:
            raise ValueError("lora_layers_to_transform needs a list of lora_target_modules; name layers in the pattern")
        return self

    @model_validator(mode="after")
    def _plain_experts(self) -> AdapterSettings:
        """What PEFT computes for a bare parameter: no dropout, no DoRA, and each layer that the name matches."""
        others = {
            "lora_dropout 0": self.lora_dropout > 0,
            "no peft_use_dora": self.peft_use_dora,
            "no lora_layers_to_transform; name the layers in lora_target_parameters": self.lora_layers_to_transform,
        }
        if self.lora_target_parameters and (needed := [words for words, given in others.items() if given]):
            raise ValueError(f"lora_target_parameters needs {needed[0]}")
        return self

    @model_validator(mode="after")
    def _one_library(self) -> AdapterSettings:
        if self.backend == "unsloth" and self.hf_alone:
            raise ValueError(f"backend unsloth does not train with {self.hf_alone}; set backend to auto or hf")
        return self

    @property
    def module_pattern(self) -> str:
        """The regular expression for names of modules that get an adapter, or ""."""
        wanted = self.lora_target_modules
        return wanted if isinstance(wanted, str) and wanted != ALL_LINEAR else ""

    @property
    def hf_alone(self) -> str:
        """What only the backend `hf` trains with, the first of it, or ""."""
        asked = {
            "peft_use_dora": self.peft_use_dora,
            "lora_target_parameters": self.lora_target_parameters,
            "peft_trainable_token_indices": self.peft_trainable_token_indices,
            "tokens": self.tokens,
            "added_tokens_overrides": self.added_tokens_overrides,
            "a pattern in lora_target_modules": self.module_pattern,
        }
        return next((words for words, given in asked.items() if given), "")

    @property
    def library(self) -> Literal["auto", "hf", "unsloth"]:
        """The backend to choose: `hf` where no other trains this job, else that of the job file."""
        return "hf" if self.hf_alone else self.backend
