"""Which row is trained on when: a pure function of (seed, epoch, index).

The rows of a job form one endless stream, `permutation(seed, 0) ++ permutation(seed, 1) ++ ...`. Update `s` (0-based)
takes the positions `[s * E, (s + 1) * E)` of it, `E` being the global batch. The state is two integers, (epoch, index);
micro-batch, accumulation and world size only cut a step's `E` positions into pieces and never change which they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_EPOCH, _SPLIT = 0, 1
"""First word of every entropy list, so that an epoch's order and the eval split never share a random stream."""


def _shuffled(n: int, *entropy: int) -> np.ndarray:
    """A permutation of `range(n)`, int64 of shape (n,).

    Sorts raw 64-bit words of Philox: NumPy freezes the streams of its bit generators and of SeedSequence for ever,
    but not those of `Generator.permutation`.
    """
    words = np.random.Philox(np.random.SeedSequence(entropy)).random_raw(n)
    return np.argsort(words, kind="stable")


@lru_cache(maxsize=2)
def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """Order of the `n` training rows in `epoch`: int64 of shape (n,), read-only."""
    order = _shuffled(n, _EPOCH, seed, epoch)
    order.setflags(write=False)
    return order


def split(rows: int, eval_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers `(train, eval)`, each ascending, of shapes (rows - eval_rows,) and (eval_rows,)."""
    order = _shuffled(rows, _SPLIT, seed)
    return np.sort(order[eval_rows:]), np.sort(order[:eval_rows])


def position(step: int, global_batch: int, rows: int) -> tuple[int, int]:
    """`(epoch, index)` of the first sample that is still to be trained on after `step` updates."""
    return divmod(step * global_batch, rows)


def step_samples(step: int, global_batch: int, rows: int, seed: int) -> list[int]:
    """The `global_batch` samples of update `step` (0-based), as indices into the training rows."""
    samples: list[int] = []
    epoch, index = position(step, global_batch, rows)
    while len(samples) < global_batch:
        taken = permutation(rows, seed, epoch)[index : index + global_batch - len(samples)]
        samples.extend(taken.tolist())
        epoch, index = epoch + 1, 0
    return samples


@dataclass(frozen=True)
class MicroBatches:
    """Batch sampler of one process: the micro-batches of the updates `start_step .. max_steps - 1`, in order.

    Has no length on purpose: the trainer then counts updates instead of epochs.
    """

    rows: int
    seed: int
    start_step: int
    max_steps: int
    global_batch: int
    micro_batch: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError("there are no rows to train on")
        if self.global_batch % (self.micro_batch * self.world):
            raise ValueError(
                f"micro-batch {self.micro_batch} x {self.world} processes does not divide "
                f"the global batch {self.global_batch}"
            )

    @property
    def accumulation(self) -> int:
        """Micro-batches of one process that make one update."""
        return self.global_batch // (self.micro_batch * self.world)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start_step, self.max_steps):
            samples = step_samples(step, self.global_batch, self.rows, self.seed)
            for turn in range(self.accumulation):
                begin = (turn * self.world + self.rank) * self.micro_batch
                yield samples[begin : begin + self.micro_batch]
