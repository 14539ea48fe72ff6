"""Whether a job file and its base model fit the adapter that the job continues from."""

from __future__ import annotations

import re
from collections.abc import Iterable

from orchestrator.domain.errors import InvalidError
from orchestrator.ports.catalog import BaseModel
from orchestrator.services.adapter_files import AdapterFiles
from worker.shared import module_patterns
from worker.shared.job_spec import JobSpec
from worker.shared.model_support import RENAMED

_FIXED = ("lora_r", "lora_alpha", "peft_use_rslora", "peft_use_dora")
_LISTS = ("lora_layers_to_transform", "peft_trainable_token_indices")
_NOT_CONTINUED = ("lora_target_parameters", "tokens", "added_tokens_overrides")
"""Keys of jobs that begin with a new adapter."""
_QUANTISED = re.compile(r"(-unsloth)?-bnb-4bit$")
_FROM_HIDDEN = frozenset({"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"})
_TO_HIDDEN = frozenset({"o_proj", "down_proj"})
_LINEAR = _FROM_HIDDEN | _TO_HIDDEN
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


def conflicts(spec: JobSpec, files: AdapterFiles) -> list[tuple[str, str]]:
    """`(pointer, words)` for each value of the job file that is another one than the adapter's.

    What the file does not say is taken from the adapter. `lora_dropout` may be another one.
    """
    own = files.settings
    different = [(key, getattr(spec, key), own[key]) for key in _FIXED]
    different += [(key, sorted(getattr(spec, key)), sorted(own[key])) for key in _LISTS]
    faults = [
        (f"/{key}", f"{mine!r} here, {theirs!r} in the adapter. Remove the key, and the job takes the adapter's")
        for key, mine, theirs in different
        if key in spec.model_fields_set and mine != theirs
    ]
    if "lora_target_modules" in spec.model_fields_set and not _has_targets(spec, files):
        mine, theirs = spec.lora_target_modules, ", ".join(own["lora_target_modules"])
        shown = mine if isinstance(mine, str) else ", ".join(mine)
        words = f"{shown} here, {theirs} in the adapter. Remove the key, and the job takes the adapter's"
        faults.append(("/lora_target_modules", words))
    words = "cannot be used with lora_model_dir. Remove the key, or begin with a new adapter"
    return [*faults, *((f"/{key}", words) for key in _NOT_CONTINUED if getattr(spec, key))]


def _has_targets(spec: JobSpec, files: AdapterFiles) -> bool:
    """Whether the job adapts these modules, as far as their names tell. The session compares all of them."""
    wanted = spec.lora_target_modules
    if spec.module_pattern:
        try:
            return set(module_patterns.matching(spec.module_pattern, sorted(files.modules))) == files.modules.keys()
        except module_patterns.PatternError:
            return True  # said elsewhere
    if isinstance(wanted, str):  # all linear layers
        names = set(files.settings["lora_target_modules"])
        return not names & _LINEAR or names >= _LINEAR
    return all(any(_ends(name, target) for target in wanted) for name in files.modules) and all(
        any(_ends(name, target) for name in files.modules) for target in wanted
    )


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def refuse_other_model(spec: JobSpec, files: AdapterFiles, model: BaseModel) -> None:
    """Raise `InvalidError` for an adapter of another base model, by its name, its modules and their lengths."""
    if files.base_model and not is_same_model(files.base_model, model.name):
        words = (
            f"was trained on {files.base_model}, and base_model is {model.name}. Set base_model to that model. If both "
            "are the same, correct base_model_name_or_path in adapter_config.json"
        )
    else:
        words = _other_modules(spec, files, model) or _other_lengths(files, model)
    if words:
        raise InvalidError(f"The adapter in lora_model_dir {words}.", [("/lora_model_dir", words)])


def is_same_model(adapters: str, jobs: str) -> bool:
    """Whether an adapter and a job name the same base model.

    A copy in 4 bits is the same model, so is one by unsloth of a model with this name, and a folder is known by its
    name alone, since it may be on another computer.
    """
    theirs, mine = (_QUANTISED.sub("", name.partition("@")[0].rstrip("/").lower()) for name in (adapters, jobs))
    if theirs == mine:
        return True
    owners = [name.rpartition("/")[0] for name in (theirs, mine)]
    is_copy = any(owner == "unsloth" or owner.count("/") or not owner for owner in owners)
    return is_copy and theirs.rpartition("/")[2] == mine.rpartition("/")[2]


def _other_modules(spec: JobSpec, files: AdapterFiles, model: BaseModel) -> str:
    layers = model.shape.layers if model.shape is not None else None
    highest = max((_layer(name) for name in files.modules), default=-1)
    if layers is not None and highest >= layers:
        return f"has layer {highest}, and {model.name} has {layers} layers, the first being 0"
    if not model.modules or model.kind in RENAMED or any(".experts." in name for name in model.modules):
        return ""
    if unknown := sorted(files.modules.keys() - model.modules):
        return f"adapts {unknown[0][:200]}, which {model.name} does not have"
    begins = {_begin(name) for name in files.modules}
    names = {name.rpartition(".")[2] for name in files.modules}
    some = set(spec.lora_layers_to_transform)
    there = (name for name in model.modules if name.rpartition(".")[2] in names and _begin(name) in begins)
    missing = sorted(_without(there, files.modules.keys(), some))
    return f"does not adapt {missing[0]}, although it adapts the same module in other layers" if missing else ""


def _without(names: Iterable[str], adapted: Iterable[str], layers: set[int]) -> set[str]:
    known = set(adapted)
    return {name for name in names if name not in known and (not layers or _layer(name) in layers)}


def _other_lengths(files: AdapterFiles, model: BaseModel) -> str:
    hidden = model.shape.hidden if model.shape is not None else None
    for module, lengths in sorted(files.modules.items()):
        name = module.rpartition(".")[2]
        if hidden is None or lengths is None or name not in _LINEAR:
            continue
        length = lengths[0] if name in _FROM_HIDDEN else lengths[1]
        if length != hidden:
            return f"is for a hidden size of {length} ({module}), and {model.name} has {hidden}"
    return ""


def _layer(name: str) -> int:
    found = _LAYER.search(f"{name}.")
    return int(found[1]) if found else -1


def _begin(name: str) -> str:
    found = _LAYER.search(f"{name}.")
    return name[: found.start()] if found else ""
