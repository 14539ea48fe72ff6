"""What the trainer knows of a training method, and what a method may use of the trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from worker.training.data import Rows
from worker.training.encoding import Example
from worker.training.ranks import Group


class Run(Protocol):
    """The trainer, as a method sees it."""

    group: Group
    micro_batch: int
    pad_id: int
    longest: int
    """Maximum tokens of a sequence."""
    step_metrics: dict[str, float]
    """Further values of the update, which the method may add."""
    frozen: Mapping[str, torch.nn.Parameter]
    """The adapter that the job continues from, if the method compares with it."""

    def parts(self, examples: Sequence[Example]) -> Iterator[tuple[int, Sequence[Example]]]:
        """The examples in micro-batches, each with the place of its first one. The same cut at every call."""
        ...

    def attempt(self, work: Callable[[], None]) -> bool:
        """Do the work. False if it failed in any process and the update has to start again."""
        ...

    def rewind(self) -> None:
        """Put random generators and the model's own state back to the update's beginning."""
        ...

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a part of the update's loss."""
        ...

    def summed_rows(self, model: Any, examples: Sequence[Example]) -> torch.Tensor:
        """Loss of a micro-batch, summed over its trained tokens."""
        ...

    def summed(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The same of a batch."""
        ...

    def by_token(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Loss of each label of a batch: (rows, length - 1), 0 for one that is not trained on."""
        ...

    def row_before(self) -> Example:
        """The row before the first one of this process in the global batch, which is a ring."""
        ...


class Method(Protocol):
    """How the loss of an update follows from its rows."""

    def update(self, run: Run, model: Any, examples: list[Example], tokens: float) -> torch.Tensor | None:
        """Gradients of this process's rows, and its part of the loss. None if the update has to start again.

        `tokens` are the trained tokens of the global batch, at least 1.
        """
        ...

    def held_out_loss(self, run: Run, model: Any, rows: Rows) -> float | None:
        """The loss over validation rows, computed by this process alone. None if no row teaches anything.

        Leaves the random generators, and mode and state of the model, unchanged.
        """
        ...
