"""The model card of an adapter: the README of its PEFT folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from worker.shared.counted_words import many
from worker.shared.job_spec import JobSpec
from worker.shared.long_texts import SPLIT
from worker.shared.manifest import Recipe

_NEW_TOKENS = (
    "The tokenizer in this folder has new tokens. To load the adapter onto a base model by hand, first make room for "
    "them: `model.resize_token_embeddings(max(len(tokenizer), model.get_input_embeddings().weight.shape[0]))`.\n\n"
)
_ELSEWHERE = (
    "The base model is a folder of the server that trained this adapter. No other computer finds it under this path. "
    "To load the adapter elsewhere, copy that folder there and write its new path to `base_model_name_or_path` in "
    "`adapter_config.json`.\n\n"
)


def model_card(
    spec: JobSpec,
    recipe: Recipe,
    evidence: str = "",
    model_index: Sequence[Mapping[str, Any]] = (),
    *,
    ending: str = "",
) -> str:
    """The README of the folder, with the tags by which the Hugging Face hub finds it.

    `evidence` is Markdown that says how good the adapter is, `model_index` are results of benchmarks in the form that
    the hub reads. The worker does not know them yet. The server does. `ending` says how the job ended, if there is more
    to say than its number of steps.
    """
    name = spec.base_model.partition("@")[0]
    is_of_hub = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) is not None
    base = [f"base_model: {json.dumps(name)}"] if is_of_hub else []
    tags = [*([f"base_model:adapter:{name}"] if is_of_hub else []), "lora", recipe.rl, "transformers", "trainhop"]
    chosen = recipe.model_dump(exclude_defaults=True, exclude={"method_settings"}) | recipe.method_settings
    rows = "\n".join(f"| {key} | `{_cell(value)}` |" for key, value in chosen.items())
    # JSON is YAML. Without escapes, because two of them for one character would be two characters.
    index = [f"model-index: {json.dumps(list(model_index), ensure_ascii=False)}"] if model_index else []
    lines = [*base, "library_name: peft", "pipeline_tag: text-generation", f"tags: {json.dumps(tags)}", *index]
    head = "\n".join(lines)
    accepted = ", ".join(spec.accept_findings)
    data = f"The data checks stopped this data, and its owner accepted it: {accepted}.\n\n" if accepted else ""
    is_split = recipe.excess_length_strategy == SPLIT
    rows_of_an_epoch = f"{recipe.epoch_rows} rows and pieces of texts" if is_split else many(recipe.epoch_rows, "row")
    steps = f"{many(recipe.max_steps, 'step')} ({ending})" if ending else many(recipe.max_steps, "step")
    return (
        f"---\n{head}\n---\n\n"
        f"# {spec.name}\n\nA LoRA adapter for `{spec.base_model}`, trained with Trainhop on "
        f"{rows_of_an_epoch} for {steps}.{_began_with(spec)}\n\n{evidence}{data}{'' if is_of_hub else _ELSEWHERE}"
        f"{_NEW_TOKENS if spec.new_tokens else ''}"
        f"```python\nfrom peft import AutoPeftModelForCausalLM\n\n"
        f'model = AutoPeftModelForCausalLM.from_pretrained("path/to/this/folder")\n```\n\n'
        f"| recipe | |\n|---|---|\n{rows}\n"
    )


def _began_with(spec: JobSpec) -> str:
    """What the adapter was before. Names of others are not told, since a card is published."""
    if spec.lora_model is None:
        return ""
    origin = f"the adapter of job {spec.lora_model.job}" if spec.lora_model.job else "another adapter"
    sha256 = spec.lora_model.weights_sha256
    return f" The training continued from {origin} (sha256 of `adapter_model.safetensors`: `{sha256}`)."


def _cell(value: object) -> object:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {each}" for key, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple) else value
