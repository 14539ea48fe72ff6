"""Adapters of parameters that are not the weight of a linear layer: the experts of a mixture."""

from __future__ import annotations

from typing import Any

from torch import nn

from worker.shared.experts import MOVED, MOVED_BY_PEFT
from worker.training.interface import PermanentError

_WRAPPER = "ParamWrapper"
"""PEFT's class for such an adapter."""


def check(model: Any, wanted: tuple[str, ...], base_model: str) -> None:
    """Raise `PermanentError` for a name of `lora_target_parameters` that PEFT would leave out, or cannot adapt."""
    there = {
        f"{path}.{name}": (module, parameter)
        for path, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
    }
    for target in wanted:
        matched = [name for name in there if name == target or name.endswith(f".{target}")]
        weights = [name for name in there if name.endswith((f".{target}.weight", f".{target}.bias"))]
        if not matched and not weights:
            known = ", ".join(dict.fromkeys(_short(name) for name, (_, p) in there.items() if p.ndim == 3)) or "none"
            raise PermanentError(
                f"lora_target_parameters: {target} matches nothing in {base_model}; its experts are: {known}"
            )
        for name in matched or weights:
            if words := _fault(name, *there[name], is_whole=bool(matched)):
                raise PermanentError(f"lora_target_parameters: {target} {words} ({name} of {base_model})")


def _fault(name: str, module: nn.Module, parameter: nn.Parameter, *, is_whole: bool) -> str:
    if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
        return "is a linear layer; name it in lora_target_modules"
    if isinstance(module, nn.Embedding) or not is_whole or parameter.ndim not in (2, 3) or name.endswith("bias"):
        return "cannot have an adapter; name the experts"
    return ""


def _short(name: str) -> str:
    """The name within its layer."""
    return name.rsplit(".layers.", maxsplit=1)[-1].partition(".")[2] or name


def for_linear(names: list[str], kind: str, wanted: tuple[str, ...]) -> list[str]:
    """The names of all linear layers, without those that PEFT would take for experts which have names of their own."""
    return [name for name in names if name not in MOVED] if wanted and kind in MOVED_BY_PEFT else names


def notice(adapted: nn.Module, wanted: tuple[str, ...]) -> str:
    """What has happened to experts that the model keeps in one tensor, unless the job has named them."""
    fused = next((n for n, p in adapted.named_parameters() if "experts" in n and p.ndim > 2), "")
    if not fused or wanted:
        return ""
    fused = fused.removeprefix("base_model.model.").replace(".base_layer", "")
    if any(type(module).__name__ == _WRAPPER for module in adapted.modules()):
        return (
            "PEFT has put the adapter of gate_proj, up_proj and down_proj on the experts of this model, as older "
            f"models had them ({fused}); name them in lora_target_parameters to decide it"
        )
    return (
        f"the experts of this model have no adapter, because they are not linear layers ({fused}); name them in "
        "lora_target_parameters if they shall have one"
    )
