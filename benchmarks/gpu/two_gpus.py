"""The paper's job on two cards at once, killed once, compared with the same job on one (item `orchestrated-hf`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.gpu import orchestrated
from benchmarks.gpu.models import Scale


def measure(folder: Path, scale: Scale, single: dict[str, Any], home: Path) -> dict[str, Any]:
    """Same samples and same global batch. Gradients are summed in another order, so losses are close but not equal."""
    both = orchestrated.measure(folder, scale, "hf", home)
    pairs = zip(single["losses"], both["losses"], strict=True)
    return both | {
        "largest_loss_difference": max(abs(a - b) for a, b in pairs),
        "sample_order_equal": single["batch_crc32"] == both["batch_crc32"],
        "speed_up": round(single["step_seconds_median"] / both["step_seconds_median"], 3),
    }
