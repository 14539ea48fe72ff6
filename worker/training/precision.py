"""The number format in which a machine computes. Trainable parameters are fp32 everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from worker.shared.manifest import Hardware

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def precision_of(hardware: Hardware) -> str:
    """Compute precision: fp32 on a CPU, bf16 from compute capability 8.0 on, fp16 below.

    `torch.cuda.is_bf16_supported()` is not used, because it includes emulation on older cards.
    """
    if hardware.device == "cpu":
        return "fp32"
    return "bf16" if (hardware.compute_capability or (0, 0)) >= (8, 0) else "fp16"
