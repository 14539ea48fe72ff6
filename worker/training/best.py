"""The best evaluation of a run so far: when to stop early, and the adapter that the job ends with.

A checkpoint of step N holds what was known after the evaluations before step N, and that of the last step all of it.
So the same evaluations decide the same, wherever a run is cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from worker.shared.checkpoint_header import ADAPTER, BEST, CheckpointError
from worker.training.interface import PermanentError
from worker.training.state import trainable

if TYPE_CHECKING:
    from worker.shared.job_spec import JobSpec
    from worker.training.interface import Resume

_NO_LOSS = (
    "the validation rows have no trained token, so there is no validation loss to choose by; set a larger "
    "val_set_size, or leave early_stopping_patience and load_best_model_at_end out"
)


@dataclass(frozen=True, kw_only=True)
class Best:
    """`loss` is the lowest validation loss, at `step`. `misses` evaluations since then were not lower.

    `seen` is the step of the newest evaluation. `tensors` are the adapter's at the best step, by the names of its
    parameters, if the job ends with them (`keeps`).
    """

    patience: int | None
    keeps: bool
    loss: float | None = None
    step: int = 0
    misses: int = 0
    seen: int = 0
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])

    @classmethod
    def of(cls, spec: JobSpec, resume: Resume | None) -> Best | None:
        """What a session begins with. None if the job needs no best evaluation. Raises `CheckpointError`."""
        if not spec.watches_loss:
            return None
        fresh = cls(patience=spec.early_stopping_patience, keeps=spec.load_best_model_at_end)
        saved = resume.manifest.state.get("best") if resume is not None else None
        if resume is None or saved is None:
            return fresh
        tensors = {n.removeprefix(BEST): a for n, a in resume.arrays.items() if n.startswith(BEST)}
        try:
            loss = None if saved["loss"] is None else float(saved["loss"])
            numbers = {name: int(saved[name]) for name in ("step", "misses", "seen")}
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint's best evaluation cannot be read: {error!r}") from error
        if fresh.keeps and bool(tensors) != (loss is not None):
            raise CheckpointError("the checkpoint lacks the adapter of the best evaluation, or has one without it")
        return replace(fresh, loss=loss, tensors=tensors, **numbers)

    def after(self, step: int, loss: float | None, model: nn.Module) -> Best:
        """The same with one more evaluation. Of two equal losses the first one is the best.

        An evaluation that is repeated, because a session was cut there, changes nothing.
        """
        if step <= self.seen:
            return self
        if loss is None:
            raise PermanentError(_NO_LOSS)
        if not math.isfinite(loss) or (self.loss is not None and loss >= self.loss):
            return replace(self, seen=step, misses=self.misses + 1)
        tensors = {n: p.detach().to("cpu", copy=True).contiguous().numpy() for n, p in trainable(model).items()}
        return replace(self, seen=step, misses=0, loss=loss, step=step, tensors=tensors if self.keeps else {})

    @property
    def ends(self) -> bool:
        """Whether the job stops early after the newest evaluation."""
        return self.patience is not None and self.misses >= self.patience

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The tensors under their names in a checkpoint."""
        return {BEST + name: array for name, array in self.tensors.items()}

    @property
    def state(self) -> dict[str, Any]:
        """The JSON part of a checkpoint."""
        return {"loss": self.loss, "step": self.step, "misses": self.misses, "seen": self.seen}

    def put_back(self, model: nn.Module) -> None:
        """Give the adapter the values that it had at the best step, if they are kept."""
        if self.tensors:
            with torch.no_grad():
                for name, parameter in trainable(model).items():
                    parameter.copy_(torch.from_numpy(np.array(self.tensors[name])))


def answering(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint with the adapter that its job ended with in the place of the last one."""
    best = {ADAPTER + n.removeprefix(BEST): a for n, a in arrays.items() if n.startswith(BEST)}
    return {name: array for name, array in arrays.items() if not name.startswith(BEST)} | best
