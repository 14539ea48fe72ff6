"""Validation rows that are also training rows, and a split that separates copies."""

from __future__ import annotations

from array import array

import numpy as np

from worker.shared.data_checks.copies import Copies
from worker.shared.data_checks.findings import Found, RowsFound
from worker.shared.data_checks.texts import Seen, key

LEAST_WORDS = 5
"""Words of a last user turn that two conversations do not share by chance."""
NEAR_STOP = 0.02


class Leaks:
    """Compares validation rows with training rows. Training rows are added first, each place once."""

    def __init__(self) -> None:
        self._prompts, self._last_turns = array("Q"), array("Q")
        self._train = 0

    def add(self, seen: Seen, *, is_held_out: bool) -> None:
        """Add a row in the order of the copies."""
        self._train += not is_held_out
        self._prompts.append(seen.prompt_key or 0)
        self._last_turns.append(_last_user_turn(seen))

    def findings(self, copies: Copies, near: list[tuple[int, int]]) -> tuple[RowsFound, ...]:
        """The leaks, which name validation rows, and the split."""
        rows = len(self._prompts)
        held_out, train = rows - self._train, self._train
        exact, exactly = Found("leak"), copies.exact()
        prompts, turns = _first_train(self._prompts, train), _first_train(self._last_turns, train)
        near_of = {b: a for a, b in near if a < train <= b}
        close = Found("leak")
        for place in range(train, rows):
            same = int(exactly[place]) if exactly[place] < train else prompts.get(self._prompts[place])
            if same is not None:
                exact.add_row(place, copies.lines[place], copies.lines[same])
                continue
            other = near_of.get(int(exactly[place]), turns.get(self._last_turns[place]))
            if other is not None:
                close.add_row(place, copies.lines[place], copies.lines[other])
        found = exact.finding(
            "{count} of {total} validation rows ({share}) have the same text or the same prompt as a training row",
            total=held_out,
        )
        share = len(close.rows) / max(1, held_out)
        nearly = close.finding(
            "{count} of {total} validation rows ({share}) are nearly the same as a training row, or ask the same "
            "last question",
            total=held_out,
            level="stop" if share > NEAR_STOP else "warn",
        )
        return found + nearly + self._cut(copies, exactly, near_of, train)

    def _cut(self, copies: Copies, exactly: np.ndarray, near_of: dict[int, int], train: int) -> tuple[RowsFound, ...]:
        cut = Found("split")
        sides = {int(exactly[place]) for place in range(train, len(exactly)) if exactly[place] < train}
        for first in sorted(sides | set(near_of.values())):
            cut.add_row(first, copies.lines[first])
        return cut.finding("{count} of {total} training rows have copies among the validation rows", total=train)


def _first_train(keys: array[int], train: int) -> dict[int, int]:
    """The first training row with each key."""
    found: dict[int, int] = {}
    for place in range(train):
        if keys[place]:
            found.setdefault(keys[place], place)
    return found


def _last_user_turn(seen: Seen) -> int:
    for turn, text in zip(reversed(seen.turns), reversed(seen.normal_turns), strict=True):
        if turn.role == "user":
            return key(text) if len(text.split()) >= LEAST_WORDS else 0
    return 0
