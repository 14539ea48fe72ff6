"""Supervised fine-tuning: the mean cross-entropy over all trained tokens of the global batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from worker.training import evaluation
from worker.training.data import Rows
from worker.training.encoding import Example
from worker.training.methods.interface import Run


class Sft:
    """Every trained token has the same weight, which is known before the first pass."""

    def __init__(self, settings: Mapping[str, float]) -> None:
        del settings  # it has none

    def update(self, run: Run, model: Any, examples: list[Example], tokens: float) -> torch.Tensor | None:
        """Backward passes of all micro-batches."""
        losses: list[torch.Tensor] = []

        def work() -> None:
            for _, part in run.parts(examples):
                loss = run.summed_rows(model, part) / tokens
                run.backward(loss)
                losses.append(loss.detach())

        return sum(losses, torch.zeros_like(losses[0])) if run.attempt(work) else None

    def held_out_loss(self, run: Run, model: Any, rows: Rows) -> float | None:
        """Mean loss per trained token."""
        return evaluation.eval_loss(
            model, lambda batch: float(run.summed(model, batch)), rows, run.micro_batch, run.pad_id
        )


METHOD = Sft
