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

from worker.shared.row_split import shuffled

_EPOCH, _SHARE = 0, 2
"""First words of the entropy lists of an epoch, and of a file's rows in it. That of the validation split is 1."""


@dataclass(frozen=True)
class Share:
    """The `rows` rows of a file, the first being row `first`. An epoch has `drawn` of them.

    An epoch continues where the one before it ended in an endless stream of permutations of the file. So after any
    number of epochs, two rows of a file have been trained on equally often, or one of them once more.
    """

    first: int
    rows: int
    drawn: int


@lru_cache(maxsize=2)
def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """Order of the `n` training rows in `epoch`: int64 of shape (n,), read-only."""
    order = shuffled(n, _EPOCH, seed, epoch)
    order.setflags(write=False)
    return order


@lru_cache(maxsize=2)
def epoch_order(n: int, seed: int, epoch: int, shares: tuple[Share, ...] = ()) -> np.ndarray:
    """Rows of `epoch` in order: int64 of shape (n,), read-only. `shares` are those of the files, `n` rows together.

    Without them an epoch has each row once.
    """
    order = permutation(n, seed, epoch)
    if not shares:
        return order
    drawn = [_of_share(place, share, seed, epoch) for place, share in enumerate(shares)]
    rows = np.concatenate([*drawn, np.empty(0, np.int64)])[order]
    rows.setflags(write=False)
    return rows


def _of_share(place: int, share: Share, seed: int, epoch: int) -> np.ndarray:
    if not share.drawn:
        return np.empty(0, np.int64)
    begin = epoch * share.drawn
    rounds = range(begin // share.rows, (begin + share.drawn - 1) // share.rows + 1)
    stream = np.concatenate([shuffled(share.rows, _SHARE, seed, place, each) for each in rounds])
    start = begin - rounds[0] * share.rows
    return share.first + stream[start : start + share.drawn]


def position(step: int, global_batch: int, rows: int) -> tuple[int, int]:
    """`(epoch, index)` of the next sample after `step` updates."""
    return divmod(step * global_batch, rows)


def step_samples(step: int, global_batch: int, rows: int, seed: int, shares: tuple[Share, ...] = ()) -> list[int]:
    """The `global_batch` samples of update `step` (0-based), as indices into the training rows.

    `rows` is the length of an epoch.
    """
    samples: list[int] = []
    epoch, index = position(step, global_batch, rows)
    while len(samples) < global_batch:
        indices = epoch_order(rows, seed, epoch, shares)[index : index + global_batch - len(samples)]
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
    shares: tuple[Share, ...] = ()

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

    def of_step(self, step: int) -> list[int]:
        """The samples of the whole update, those of all processes together."""
        return step_samples(step, self.global_batch, self.rows, self.seed, self.shares)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start_step, self.max_steps):
            samples = self.of_step(step)
            for turn in range(self.accumulation):
                begin = (turn * self.world + self.rank) * self.micro_batch
                yield samples[begin : begin + self.micro_batch]
