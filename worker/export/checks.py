"""Checks finished files against base model and adapter: every tensor, and the logits of a probe.

The tensors find damage, also where no probe would. The logits find what reader and writer would get wrong together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from worker.export.errors import CheckError
from worker.export.tensor_files import Weights

MAX_ERROR = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2, "q8_0": 5e-2}
"""Largest relative error of the logits by type: what rounding every weight to it may cost."""
MIN_SAME = {"fp32": 0.98, "fp16": 0.98, "bf16": 0.9, "q8_0": 0.9}
"""Smallest share of tokens after which the most probable next token is the same, near ties aside."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """`error` is the distance of two models' logits relative to their size, `same` the share of equal next tokens."""

    error: float
    same: float
    tokens: int


def agreement(found: torch.Tensor, reference: torch.Tensor, tie: float) -> Agreement:
    """Compare logits of shape [rows, length, vocabulary]. A constant added to all of them is no difference.

    A next token is the same if the reference finds it as probable as its own, within `tie` of the spread of the logits.
    """
    found, reference = _centred(found), _centred(reference)
    size = float(reference.norm())
    chosen = reference.gather(-1, found.argmax(-1, keepdim=True)).squeeze(-1)
    spread = reference.std(-1)
    is_same = chosen >= reference.max(-1).values - tie * spread
    return Agreement(
        error=float((found - reference).norm()) / size if size else float("inf"),
        same=float(is_same.float().mean()),
        tokens=is_same.numel(),
    )


def check_logits(found: torch.Tensor, reference: torch.Tensor, kind: str) -> Agreement:
    """Raise `CheckError` if the logits differ by more than rounding to the type `kind` explains."""
    if not torch.isfinite(found).all():
        raise CheckError("the finished files give logits that are not finite; nothing was published")
    result = agreement(found, reference, MAX_ERROR[kind])
    if result.error > MAX_ERROR[kind] or result.same < MIN_SAME[kind]:
        raise CheckError(
            f"the finished files do not compute what base model and adapter compute: logits differ by "
            f"{result.error:.2%} (at most {MAX_ERROR[kind]:.1%}), and the next token is the same for {result.same:.1%} "
            f"(at least {MIN_SAME[kind]:.0%}); nothing was published"
        )
    return result


def check_tensors(found: Weights, expected: Weights, rounded: Callable[[str, torch.Tensor], torch.Tensor]) -> int:
    """Compare all tensors and return their number.

    `rounded(name, block)` is what a block of fp32 becomes in the file. Raises `CheckError` if a value differs from it.
    """
    names = set(expected.names())
    if different := names ^ set(found.names()):
        raise CheckError(f"{min(different)} is missing, or should not be there; nothing was published")
    for name in names:
        if found.shape(name) != expected.shape(name):
            raise CheckError(f"{name} has another shape than it should have; nothing was published")
        for written, wanted in zip(found.blocks(name), expected.blocks(name), strict=True):
            if not torch.equal(written, rounded(name, wanted)):
                raise CheckError(f"{name} has other values than it should have; nothing was published")
    return len(names)


def distance(found: Weights, reference: Weights, name: str) -> tuple[float, float]:
    """Squares of the difference and of the reference's values of one tensor."""
    difference = total = 0.0
    for a, b in zip(found.blocks(name), reference.blocks(name), strict=True):
        difference += float((a - b).double().square().sum())
        total += float(b.double().square().sum())
    return difference, total


def _centred(logits: torch.Tensor) -> torch.Tensor:
    return logits - logits.mean(-1, keepdim=True)
