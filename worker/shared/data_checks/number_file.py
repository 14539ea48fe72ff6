"""Arrays of numbers in a temporary file, so that the words of many rows need no memory."""

from __future__ import annotations

import tempfile
from array import array
from typing import Self

import numpy as np

MAX_BYTES = 4 * 2**30
"""Of the file. Arrays beyond it are stored empty."""


class NumberFile:
    """Arrays of uint32, added one after the other and read by their place."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="trainhop-checks-")  # noqa: SIM115  closed by the owner
        self._ends = array("Q", [0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, numbers: np.ndarray) -> None:
        """Add an array of uint32."""
        if self._ends[-1] + 4 * len(numbers) <= MAX_BYTES:
            self._file.write(numbers.astype(np.uint32, copy=False).tobytes())
            self._ends.append(self._ends[-1] + 4 * len(numbers))
        else:
            self._ends.append(self._ends[-1])

    def sizes(self) -> np.ndarray:
        """Numbers of all arrays: int64 of shape (arrays,)."""
        return np.diff(np.frombuffer(self._ends, np.uint64).astype(np.int64)) // 4

    def get(self, place: int) -> np.ndarray:
        """An array."""
        self._file.seek(self._ends[place])
        return np.frombuffer(self._file.read(self._ends[place + 1] - self._ends[place]), np.uint32)
