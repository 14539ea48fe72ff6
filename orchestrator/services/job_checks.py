"""Checks of a job file against its base model, and what a plan says about keys without an effect."""

from __future__ import annotations

from orchestrator.domain.errors import InvalidError
from orchestrator.ports.catalog import BaseModel
from orchestrator.services import expert_checks
from worker.shared import module_patterns
from worker.shared.counted_words import many
from worker.shared.job_spec import JobSpec
from worker.shared.model_support import RENAMED, adapter_fault
from worker.shared.plain_errors import nearest

_HEAD = "lm_head"
"""Has no weights of its own in the files of a model that shares them with its embedding."""


def refuse_what_the_model_lacks(spec: JobSpec, model: BaseModel) -> None:
    """Raise `InvalidError` for an adapter, a length or a module that the base model does not allow.

    What its files do not tell is not refused.
    """
    if fault := adapter_fault(spec, model.kind):
        raise InvalidError(
            f"{model.name} cannot be trained like this: {fault.words}.", [(f"/{fault.key}", fault.words)]
        )
    unknown = [*_unknown_modules(spec, model), *_bad_pattern(spec, model), *_unknown_numbers(spec, model)]
    faults = [*_too_long(spec, model), *unknown, *expert_checks.faults(spec, model)]
    if faults:
        raise InvalidError("; ".join(f"{pointer}: {words}" for pointer, words in faults), faults)


def notes(spec: JobSpec, model: BaseModel) -> tuple[str, ...]:
    """What the author of a job file should know, although the job can run."""
    found: list[str] = []
    if spec.max_steps is not None and spec.num_epochs is not None:
        found.append(f"num_epochs has no effect, because max_steps is set. The job has {many(spec.max_steps, 'step')}.")
    if model.positions is not None and spec.sequence_len > model.positions and not model.has_position_table:
        found.append(
            f"The base model was trained on at most {model.positions} tokens. Set sequence_len to that or less, unless "
            "longer rows are intended."
        )
    found += expert_checks.notes(spec, model)
    return tuple(found)


def _too_long(spec: JobSpec, model: BaseModel) -> list[tuple[str, str]]:
    if model.positions is None or not model.has_position_table or spec.sequence_len <= model.positions:
        return []
    return [("/sequence_len", f"must be at most {model.positions}, the number of positions of the base model")]


def _unknown_numbers(spec: JobSpec, model: BaseModel) -> list[tuple[str, str]]:
    """Of layers and tokens. PEFT adapts the other layers and says nothing."""
    if model.shape is None:
        return []
    given = (
        ("lora_layers_to_transform", spec.lora_layers_to_transform, "layers", model.shape.layers),
        ("peft_trainable_token_indices", spec.peft_trainable_token_indices, "tokens", model.shape.vocabulary),
    )
    tokens = model.shape.vocabulary
    found = [
        (f"/added_tokens_overrides/{number}", f"the base model has {tokens} tokens, the first being 0")
        for number in spec.added_tokens_overrides
        if int(number) >= tokens
    ]
    return found + [
        (f"/{key}/{place}", f"the base model has {there} {what}, the first being 0")
        for key, numbers, what, there in given
        for place, number in enumerate(numbers)
        if number >= there
    ]


def names_modules(spec: JobSpec) -> bool:
    """Whether the job file names modules of the base model."""
    return spec.lora_target_modules != module_patterns.ALL_LINEAR or bool(spec.lora_target_parameters)


def _bad_pattern(spec: JobSpec, model: BaseModel) -> list[tuple[str, str]]:
    """It is tried in a process of its own, and also on a model whose modules are not known."""
    if not spec.module_pattern:
        return []
    try:
        if not model.modules or _is_renamed(model):
            module_patterns.matching(spec.module_pattern, module_patterns.TYPICAL)
        else:
            layers = [name for name in model.modules if ".layers." in name or ".h." in name]
            module_patterns.check(spec.module_pattern, sorted(model.modules), layers or sorted(model.modules))
    except module_patterns.PatternError as error:
        return [("/lora_target_modules", str(error))]
    return []


def _is_renamed(model: BaseModel) -> bool:
    """Whether modules have other names once they are loaded."""
    return model.kind in RENAMED or any(".experts." in name for name in model.modules)


def _unknown_modules(spec: JobSpec, model: BaseModel) -> list[tuple[str, str]]:
    """A target matches a module's full name, or its end after a dot, as PEFT compares them."""
    if isinstance(spec.lora_target_modules, str) or not model.modules or _is_renamed(model):
        return []
    names = {name.rpartition(".")[2] for name in model.modules}
    unknown = [
        (place, target)
        for place, target in enumerate(spec.lora_target_modules)
        if not any(name == target or name.endswith(f".{target}") for name in (*model.modules, _HEAD))
    ]
    known = ", ".join(sorted(name for name in names if not name.isdigit()))
    return [
        (
            f"/lora_target_modules/{place}",
            f"the base model has no module '{target}'{nearest(target, names) or f'; there are {known}'}",
        )
        for place, target in unknown
    ]
