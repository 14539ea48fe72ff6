"""The reference model of a preference loss: what the trained model is compared with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
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
def reference(model: Any) -> Iterator[None]:
    """The block's passes are those of the reference: the base model, since a new adapter begins without an effect.

    An adapter that begins with trained values needs a frozen copy of them here.
    """
    with model.disable_adapter():
        yield
