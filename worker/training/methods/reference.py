"""The reference model of a preference loss: what the trained model is compared with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch


@contextlib.contextmanager
def measuring(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients, so that no random number is drawn.

    Kernels stay deterministic, unlike in an evaluation, because gradients depend on what is measured.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


@contextlib.contextmanager
def reference(model: Any, frozen: Mapping[str, torch.nn.Parameter]) -> Iterator[None]:
    """The block's passes are those of the reference: the model as it was when the job began.

    That is the base model, since a new adapter begins without an effect. A job that continues from an adapter has its
    values by the names of the parameters in `frozen`. No graph of the model may be alive around the block.
    """
    if not frozen:
        with model.disable_adapter():
            yield
        return
    own = _put(model, frozen)
    try:
        yield
    finally:
        _put(model, own)


def _put(model: Any, parameters: Mapping[str, torch.nn.Parameter]) -> dict[str, torch.nn.Parameter]:
    """Replace parameters by name. Returns those that were there.

    The objects are exchanged and not their values, because autocast keeps copies in 16 bits by object.
    """
    before: dict[str, torch.nn.Parameter] = {}
    for name, parameter in parameters.items():
        owner, _, key = name.rpartition(".")
        held = model.get_submodule(owner)._parameters  # noqa: SLF001  the only place of all kinds of owners
        before[name], held[key] = held[key], parameter
    return before
