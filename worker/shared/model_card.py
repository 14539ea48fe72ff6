"""The model card of an adapter: the README of its PEFT folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from worker.shared.job_spec import JobSpec
from worker.shared.manifest import Recipe

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
    steps = f"{recipe.max_steps} steps ({ending})" if ending else f"{recipe.max_steps} steps"
    return (
        f"---\n{head}\n---\n\n"
        f"# {spec.name}\n\nA LoRA adapter for `{spec.base_model}`, trained with Trainhop on "
        f"{recipe.epoch_rows} rows for {steps}.{_began_with(spec)}\n\n{evidence}{data}{'' if is_of_hub else _ELSEWHERE}"
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
    return ", ".join(map(str, value)) if isinstance(value, tuple) else value
