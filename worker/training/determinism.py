"""Which kernels PyTorch may take: those that give the same bits every time, as long as the model allows it."""

from __future__ import annotations

import logging
import os

import torch


def insist_on_determinism() -> None:
    """Take deterministic kernels only. Merely to be warned is not enough: attention then takes its fast, unordered pass."""
    # cuBLAS reads this once, when its first handle is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Else every fresh tensor is filled with NaN, to find reads of what nobody wrote; nothing here reads such a thing.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue] - made by setattr
    # Its attention plans anew for every length it meets.
    torch.backends.cuda.enable_cudnn_sdp(False)


def allow_other_kernels(why: str) -> None:
    """Go on with whatever kernels there are; the run is then exact in its state but not in its last bits."""
    first = (why.splitlines() or [""])[0]
    logging.getLogger(__name__).warning("not every operation is deterministic here: %s", first)
    torch.use_deterministic_algorithms(True, warn_only=True)


def is_deterministic() -> bool:
    """Whether every kernel taken so far gives the same bits again."""
    return torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
