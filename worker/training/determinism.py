"""Selects PyTorch's deterministic kernels as far as the model allows it."""

from __future__ import annotations

import logging
import os

import torch


def require_deterministic_kernels() -> None:
    """Use deterministic kernels only.

    A warning instead of an error is not enough: attention then takes its fast, non-deterministic backward pass.
    """
    # cuBLAS reads this only once, when its first handle is created.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    set_deterministic_kernels(True)
    # Otherwise every new tensor is filled with NaN to detect uninitialised reads, which costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue] - made by setattr
    # cuDNN's attention makes a new plan for every sequence length.
    torch.backends.cuda.enable_cudnn_sdp(False)


def set_deterministic_kernels(wanted: bool, *, warn_only: bool = False) -> None:
    """Like `torch.use_deterministic_algorithms`, which also loads torch's compiler: a second of every session.

    Only unsloth compiles. It sets the compiler's own flag when it is imported.
    """
    torch.set_deterministic_debug_mode(("warn" if warn_only else "error") if wanted else "default")


def allow_nondeterministic_kernels(why: str) -> None:
    """Allow non-deterministic kernels. The run is then exact in its state but not in its last bits."""
    first = (why.splitlines() or [""])[0]
    logging.getLogger(__name__).warning("not every operation is deterministic here: %s", first)
    set_deterministic_kernels(True, warn_only=True)


def lacks_deterministic_kernel(error: RuntimeError) -> bool:
    """Whether torch refused an operation because it has no deterministic kernel for it."""
    return "deterministic implementation" in str(error)


def is_deterministic() -> bool:
    """Whether all kernels used so far are deterministic."""
    return torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
