"""How an adapter is exported, or how long it is chatted with, on a machine: parts of the job file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from worker.shared.wire import Written

EXPORTABLE = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3",
    "phi3": "Phi-3",
}
"""The names of the architectures that can be exported, by `model_type` of config.json."""


def not_exportable(kind: str) -> str:
    """Why models of this type cannot be exported, in words."""
    return f"models of the type {kind} cannot be exported; there are {', '.join(EXPORTABLE.values())}"


def no_form(trained: Mapping[str, Any], form: str) -> str:
    """Why the adapter of a job with this file cannot be exported in a form, or ""."""
    if trained.get("lora_target_parameters"):
        return "adapters of experts (lora_target_parameters) cannot be exported; load the adapter with PEFT"
    rows = ("peft_trainable_token_indices", "tokens", "added_tokens_overrides")
    if form == "gguf-adapter" and any(trained.get(key) for key in rows):
        return "a GGUF adapter has no place for trained tokens; export it as merged or gguf"
    if form == "gguf-adapter" and trained.get("peft_use_dora"):
        return "a GGUF adapter has no place for DoRA's magnitudes; export it as merged or gguf"
    return ""


class ExportSpec(Written):
    """An export of the adapter of the finished job `job`.

    `type` None: fp16 where values and activations fit, else bf16. `onto` says into which form of the base model the
    adapter is merged: the original one, or the NF4 form on which jobs with `adapter: qlora` are trained.
    """

    job: Annotated[str, Field(max_length=100)]
    format: Literal["merged", "gguf", "gguf-adapter"]
    type: Literal["fp16", "bf16", "q8_0"] | None = None
    onto: Literal["original", "nf4"] = "original"


class ChatSpec(Written):
    """A chat with the adapter of the finished job `job`. Its session has `minutes`, its start included."""

    job: Annotated[str, Field(max_length=100)]
    minutes: Annotated[int, Field(ge=1)]
