"""Exact duplicates and near-copies: found by the hashes of rows and by MinHash, and verified by their runs of words.

A near-copy shares at least half of its runs of three words with another row (Jaccard), or has at least four fifths of
them in common with it (containment), as a half of a row has. MinHash proposes pairs, and each pair is counted exactly.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np

from worker.shared.data_checks.number_file import NumberFile
from worker.shared.data_checks.texts import Seen, overlap

JACCARD, CONTAINMENT = 0.5, 0.8
LEAST_SHINGLES = 8
"""Runs of words of a row that is compared. Shorter rows are alike by chance."""
PERMUTATIONS, BANDS = 128, 64
SEED = 1
AT_ONCE = 256
REACH = 12
"""Rows of one bucket that are compared with each row of it."""
MARGIN = 0.13
"""What an estimate by 128 hashes may lack, three standard deviations."""
MAX_PAIRS = 400_000
"""Pairs that are counted exactly, the most alike first."""


class Copies:
    """Finds the copies among all rows that are added. Needs `rensa` for near-copies; `away` says so without it."""

    def __init__(self, runs: NumberFile) -> None:
        self._runs = runs
        self.keys = array("Q")
        self.lines = array("Q")
        self._digests: list[np.ndarray] = []
        self._waiting: list[np.ndarray] = []
        self.away = ""
        self.is_cut = False
        """Whether there were more pairs than `MAX_PAIRS`."""
        self._min_hash: Any = None
        try:
            from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  made by its compiled part

            self._min_hash = RMinHash
        except ImportError:
            self.away = "rensa is not installed (pip install rensa)"

    def add(self, seen: Seen) -> None:
        """Add a row. Its place is the number of rows before it."""
        self.keys.append(seen.whole_key)
        self.lines.append(seen.line)
        if self._min_hash is not None:
            self._runs.add(seen.shingles)
            self._waiting.append(seen.shingles)
            if len(self._waiting) == AT_ONCE:
                self._digest()

    def _digest(self) -> None:
        if not self._waiting:
            return
        ends = np.cumsum([0, *map(len, self._waiting)], dtype=np.uint64)
        hashes = np.concatenate(self._waiting).astype(np.uint64)
        matrix = self._min_hash.digest_matrix_from_flat_token_hashes(hashes, ends, PERMUTATIONS, SEED)
        self._digests.append(np.array(matrix.to_rows(), np.uint32).reshape(-1, PERMUTATIONS))
        self._waiting = []

    def exact(self) -> np.ndarray:
        """For each row the place of the first row with the same text: int64 of shape (rows,)."""
        _, first, inverse = np.unique(np.frombuffer(self.keys, np.uint64), return_index=True, return_inverse=True)
        return first[inverse]

    def near(self) -> list[tuple[int, int]]:
        """Verified pairs of near-copies, the smaller place first. Of exact duplicates only the first row is in one."""
        self._digest()
        if not self._digests:
            return []
        digests, self._digests = np.concatenate(self._digests), []
        sizes = self._runs.sizes()
        places = np.unique(self.exact())
        places = places[sizes[places] >= LEAST_SHINGLES]
        return [pair for pair in self._proposed(digests, places, sizes) if self._is_near(pair)]

    def _proposed(self, digests: np.ndarray, places: np.ndarray, sizes: np.ndarray) -> Iterator[tuple[int, int]]:
        codes: list[np.ndarray] = []
        likeness: list[np.ndarray] = []
        width = PERMUTATIONS // BANDS
        for band in range(BANDS):
            part = digests[places, band * width : (band + 1) * width].astype(np.uint64)
            found = _pairs(part[:, 0] << np.uint64(32) | part[:, 1], places)
            if len(found):
                kept, alike = _likely(found, digests, sizes)
                codes.append(kept[:, 0].astype(np.uint64) << np.uint64(32) | kept[:, 1].astype(np.uint64))
                likeness.append(alike)
        if not codes:
            return
        pairs, first = np.unique(np.concatenate(codes), return_index=True)
        if len(pairs) > MAX_PAIRS:
            self.is_cut = True
            pairs = np.sort(pairs[np.argsort(-np.concatenate(likeness)[first], kind="stable")[:MAX_PAIRS]])
        for code in pairs.tolist():
            yield code >> 32, code & 0xFFFFFFFF

    def _is_near(self, places: tuple[int, int]) -> bool:
        first, second = map(self._runs.get, places)
        both = overlap(first, second)
        return both >= JACCARD * (len(first) + len(second) - both) or both >= CONTAINMENT * min(len(first), len(second))


def _pairs(keys: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Pairs of places with the same key: int64 of shape (pairs, 2). A crowded key gives each row a few neighbours."""
    order = np.argsort(keys, kind="stable")
    keys, places = keys[order], places[order]
    found = []
    for distance in range(1, min(REACH, len(keys) - 1) + 1):
        same = np.flatnonzero(keys[distance:] == keys[:-distance])
        if not len(same):
            break
        found.append(np.stack([places[same], places[same + distance]], axis=1))
    return np.concatenate(found) if found else np.empty((0, 2), np.int64)


def _likely(pairs: np.ndarray, digests: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs that may be near-copies by their hashes, and how alike they are."""
    kept, alike = [], []
    for begin in range(0, len(pairs), 8192):
        part = pairs[begin : begin + 8192]
        estimate = (digests[part[:, 0]] == digests[part[:, 1]]).mean(axis=1)
        most = np.minimum(estimate + MARGIN, 1.0)
        first, second = sizes[part[:, 0]], sizes[part[:, 1]]
        contained = most * (first + second) / ((1 + most) * np.minimum(first, second))
        chosen = (most >= JACCARD) | (contained >= CONTAINMENT)
        kept.append(part[chosen])
        alike.append(np.maximum(estimate, contained / 2)[chosen])
    return np.concatenate(kept), np.concatenate(alike)
