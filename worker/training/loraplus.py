"""LoRA+: the matrices that begin with zeros get a higher learning rate than the others (arXiv 2402.12354)."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

if TYPE_CHECKING:
    from worker.shared.job_spec import JobSpec


class Rates(NamedTuple):
    """Learning rates at the peak of the schedule: of A and all others, of B, and of adapters on embeddings."""

    usual: float
    b: float
    embedding: float


def rates_of(spec: JobSpec) -> Rates | None:
    """The rates of a job, or None if it has one for all."""
    if spec.loraplus_lr_ratio == 1:
        return None
    return Rates(spec.learning_rate, spec.learning_rate * spec.loraplus_lr_ratio, spec.loraplus_lr_embedding)


def parameter_groups(model: nn.Module, decaying: Collection[str], decay: float, rates: Rates) -> list[dict[str, Any]]:
    """Groups of an optimiser, in the order of `Rates`, each with and without weight decay.

    Groups may be empty, so that their number does not depend on the model. `decaying` are names of parameters.
    """
    groups = {(place, on): list[nn.Parameter]() for place in range(len(rates)) for on in (True, False)}
    names = set(decaying)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[_place(name, parameter), name in names].append(parameter)
    return [
        {"params": found, "lr": rates[place], "weight_decay": decay if on else 0.0}
        for (place, on), found in groups.items()
    ]


def _place(name: str, parameter: nn.Parameter) -> int:
    """As PEFT's `create_loraplus_optimizer`: vectors, such as DoRA's magnitudes, have the rate of B."""
    if "lora_embedding_" in name:
        return 2
    return 1 if "lora_B" in name or parameter.ndim == 1 else 0
