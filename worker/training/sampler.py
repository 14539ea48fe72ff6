"""Determines which rows each step trains on: a pure function of (seed, epoch, index).

The rows of a job form one endless stream, `permutation(seed, 0) ++ permutation(seed, 1) ++ ...`. Update `s` (0-based)
takes the positions `[s * E, (s + 1) * E)` of it, where `E` is the global batch. The state is two integers, (epoch,
index). Micro-batch, accumulation and world size only divide the `E` positions of a step and never change them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_EPOCH, _SPLIT = 0, 1
"""First word of each entropy list, so that an epoch's order and the eval split use different random streams."""


def _shuffled(n: int, *entropy: int) -> np.ndarray:
    """A permutation of `range(n)`, int64 of shape (n,).

    Sorts raw 64-bit words of Philox. NumPy guarantees the streams of its bit generators and of SeedSequence forever,
    but not those of `Generator.permutation`.
    """
    random_words = np.random.Philox(np.random.SeedSequence(entropy)).random_raw(n)
    return np.argsort(random_words, kind="stable")


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


def split_groups(groups: np.ndarray, eval_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Like `split`, but all rows of a group are on one side. `groups` has a number for each row.

    Without groups of several rows it is `split`. Where whole groups do not add up to `eval_rows`, there are fewer rows
    to evaluate, and as many rows of one group that stays in training are in neither part. If no group is small enough,
    the groups are separated.
    """
    order = _shuffled(len(groups), _SPLIT, seed)
    members: dict[int, list[int]] = {}
    for row in order.tolist():
        members.setdefault(int(groups[row]), []).append(row)
    held_out: list[int] = []
    trained: list[int] = []
    for rows in members.values():
        (held_out if len(rows) <= eval_rows - len(held_out) else trained).extend(rows)
    if eval_rows and not held_out:
        return split(len(groups), eval_rows, seed)
    # Every group in `trained` is larger than what is missing, so one row of the first group is left.
    missing = eval_rows - len(held_out)
    return np.sort(np.array(trained[missing:], np.int64)), np.sort(np.array(held_out, np.int64))


def position(step: int, global_batch: int, rows: int) -> tuple[int, int]:
    """`(epoch, index)` of the next sample after `step` updates."""
    return divmod(step * global_batch, rows)


def step_samples(step: int, global_batch: int, rows: int, seed: int) -> list[int]:
    """The `global_batch` samples of update `step` (0-based), as indices into the training rows."""
    samples: list[int] = []
    epoch, index = position(step, global_batch, rows)
    while len(samples) < global_batch:
        indices = permutation(rows, seed, epoch)[index : index + global_batch - len(samples)]
        samples.extend(indices.tolist())
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
        """Micro-batches per process and update."""
        return self.global_batch // (self.micro_batch * self.world)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start_step, self.max_steps):
            samples = step_samples(step, self.global_batch, self.rows, self.seed)
            for turn in range(self.accumulation):
                begin = (turn * self.world + self.rank) * self.micro_batch
                yield samples[begin : begin + self.micro_batch]
