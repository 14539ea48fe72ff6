"""Validation rows that are also training rows, and a split that separates copies."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from worker.shared.data_check_list import CHECKS
from worker.shared.data_checks.copies import Copies
from worker.shared.data_checks.findings import Found, RowsFound
from worker.shared.data_checks.texts import Seen, key

VALIDATION, PROMPTS, TASKS = "validation rows", "prompts", "tasks"
"""What the rows are that are held out of training."""
LEAST_WORDS = 5
"""Words of a last user turn that two conversations do not share by chance."""
NEAR_STOP = 0.02


class Leaks:
    """Compares rows that are held out, for example `VALIDATION` rows, with training rows. Those are added first."""

    def __init__(self, names: str = VALIDATION) -> None:
        self._names = names
        self._prompts, self._last_turns = array("Q"), array("Q")
        self._earlier, self._places = array("Q"), array("Q")
        """Keys of prompts within training conversations, and the places of their rows."""
        self._train = 0
        self._files: list[int] = []

    def begin_file(self) -> None:
        """The next training rows are those of the next file. Findings then name its place, if there are several."""
        self._files.append(self._train)

    def add(self, seen: Seen, *, is_held_out: bool) -> None:
        """Add a row in the order of the copies."""
        if not is_held_out and self._names != VALIDATION:
            for number in seen.earlier_prompt_keys():
                self._earlier.append(number)
                self._places.append(self._train)
        self._train += not is_held_out
        self._prompts.append((seen.asked_key if is_held_out else seen.prompt_key) or 0)
        self._last_turns.append(_last_user_turn(seen))

    def findings(self, copies: Copies, near: list[tuple[int, int]]) -> tuple[RowsFound, ...]:
        """The leaks, which name held-out rows, and the split."""
        rows, train = len(self._prompts), self._train
        exactly = copies.exact()
        prompts, turns = _first_train(self._prompts, train), _first_train(self._last_turns, train)
        for number, place in zip(self._earlier, self._places, strict=True):
            prompts.setdefault(number, place)
        near_of = {b: a for a, b in near if a < train <= b}
        exact, close = _ByFile(self._files), _ByFile(self._files)
        for place in range(train, rows):
            same = int(exactly[place]) if exactly[place] < train else prompts.get(self._prompts[place])
            if same is not None:
                exact.add(place, same, copies)
                continue
            other = near_of.get(int(exactly[place]), turns.get(self._last_turns[place]))
            if other is not None:
                close.add(place, other, copies)
        found = self._named(exact, "have the same text or the same prompt as a training row", rows - train)
        near_words = "are nearly the same as a training row, or ask the same last question"
        found += self._named(close, near_words, rows - train, stop=NEAR_STOP)
        return found + self._cut(copies, exactly, near_of, train)

    def _named(self, found: _ByFile, words: str, total: int, stop: float = 0.0) -> tuple[RowsFound, ...]:
        """A finding for each training file, all with the level of the whole."""
        level = "stop" if found.count / max(1, total) > stop else "warn"
        named: tuple[RowsFound, ...] = ()
        for where, each in found.by_file():
            text = f"{{count}} of {{total}} {self._names} ({{share}}) {words}{where}"
            named += each.finding(text, total=total, level=level)
        advice = CHECKS["leak"].advice
        if self._names != VALIDATION:
            advice = f"Remove them from the {self._names}, or the evaluation measures memory."
        return tuple(replace(each, finding=replace(each.finding, advice=advice)) for each in named)

    def _cut(self, copies: Copies, exactly: np.ndarray, near_of: dict[int, int], train: int) -> tuple[RowsFound, ...]:
        cut = Found("split")
        sides = {int(exactly[place]) for place in range(train, len(exactly)) if exactly[place] < train}
        for first in sorted(sides | set(near_of.values())):
            cut.add_row(first, copies.lines[first])
        return cut.finding("{count} of {total} training rows have copies among the " + self._names, total=train)


class _ByFile:
    """Held-out rows by the training file of the row that they are like. `starts` are the first rows of the files."""

    def __init__(self, starts: list[int]) -> None:
        self._starts = starts
        self._found: dict[int, Found] = {}
        self.count = 0

    def add(self, place: int, other: int, copies: Copies) -> None:
        file = max(1, bisect_right(self._starts, other))
        self._found.setdefault(file, Found("leak")).add_row(place, copies.lines[place], copies.lines[other])
        self.count += 1

    def by_file(self) -> Iterator[tuple[str, Found]]:
        for file, found in sorted(self._found.items()):
            yield (f" of dataset {file}" if len(self._starts) > 1 else ""), found


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
