"""Which rows of a job are held out for validation: a pure function of the rows' groups and the seed."""

from __future__ import annotations

import numpy as np

_SPLIT = 1
"""First word of the entropy list, so that the split and the order of an epoch use different random streams."""


def shuffled(n: int, *entropy: int) -> np.ndarray:
    """A permutation of `range(n)`, int64 of shape (n,).

    Sorts raw 64-bit words of Philox. NumPy guarantees the streams of its bit generators and of SeedSequence forever,
    but not those of `Generator.permutation`.
    """
    random_words = np.random.Philox(np.random.SeedSequence(entropy)).random_raw(n)
    return np.argsort(random_words, kind="stable")


def split(rows: int, eval_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers `(train, eval)`, each ascending, of shapes (rows - eval_rows,) and (eval_rows,)."""
    order = shuffled(rows, _SPLIT, seed)
    return np.sort(order[eval_rows:]), np.sort(order[:eval_rows])


def split_groups(groups: np.ndarray, eval_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Like `split`, but all rows of a group are on one side. `groups` has a number for each row.

    Without groups of several rows it is `split`. Where whole groups do not add up to `eval_rows`, there are fewer rows
    to evaluate, and as many rows of one group that stays in training are in neither part. If no group is small enough,
    the groups are separated.
    """
    order = shuffled(len(groups), _SPLIT, seed)
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
