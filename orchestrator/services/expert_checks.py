"""`lora_target_parameters` against the base model, and what a plan says of experts that a model keeps in one tensor."""

from __future__ import annotations

from orchestrator.ports.catalog import BaseModel
from worker.shared import experts
from worker.shared.experts import FUSED, MOVED, MOVED_BY_PEFT
from worker.shared.job_spec import JobSpec
from worker.shared.model_support import KNOWN
from worker.shared.module_patterns import ALL_LINEAR
from worker.shared.plain_errors import nearest

_USUAL = tuple(f"model.layers.0.self_attn.{part}_proj" for part in "qkvo")
"""Linear layers of nearly all models, where the modules are not known."""
_MANY = 1_000


def notes(spec: JobSpec, model: BaseModel) -> list[str]:
    """What becomes of the experts."""
    if model.kind not in FUSED:
        return []
    found: list[str] = []
    if not spec.lora_target_parameters:
        may = "may get the adapter of gate_proj, up_proj and down_proj" if _is_moved(spec, model) else "get no adapter"
        found.append(f"The experts of the base model {may}. Set {experts.words(model.kind)} to train them.")
    if spec.adapter == "qlora":
        found.append("The experts of the base model stay in 16 bits, because only linear layers are quantised.")
    return found


def faults(spec: JobSpec, model: BaseModel) -> list[tuple[str, str]]:
    """Names that this type of model has not, or has for linear layers, by JSON pointers."""
    given = spec.lora_target_parameters
    if not given or model.kind not in KNOWN or model.kind in experts.OPTIONAL:
        return []
    if model.kind not in FUSED:
        words = f"a {model.kind} model has no experts in one tensor; name its layers in lora_target_modules"
        return [("/lora_target_parameters", words)]
    layers = model.shape.layers if model.shape is not None else _MANY
    found = [
        (f"/lora_target_parameters/{place}", _no_expert(name, model))
        for place, name in enumerate(given)
        if not experts.has(model.kind, name, layers)
    ]
    if spec.lora_target_modules != ALL_LINEAR and _is_moved(spec, model):
        moved = ", ".join(sorted(MOVED))
        words = f"with lora_target_parameters, a {model.kind} model cannot have an adapter on {moved}, or a pattern"
        found.append(("/lora_target_modules", words))
    return found


def _is_moved(spec: JobSpec, model: BaseModel) -> bool:
    targets = spec.lora_target_modules
    names = MOVED if isinstance(targets, str) else {target.rpartition(".")[2] for target in targets}
    return model.kind in MOVED_BY_PEFT and not MOVED.isdisjoint(names)


def _no_expert(name: str, model: BaseModel) -> str:
    if _is_linear(name, model):
        return f"'{name}' is a linear layer; name it in lora_target_modules"
    known = FUSED[model.kind]
    there = f"; there are {', '.join(known)}"
    return f"a {model.kind} model has no such experts{nearest(name, known) or there}"


def _is_linear(name: str, model: BaseModel) -> bool:
    plain = name.removesuffix(".weight")
    return any(each == plain or each.endswith(f".{plain}") for each in (*model.modules, *_USUAL))
