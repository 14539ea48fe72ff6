"""Rows that hold an item of a benchmark: runs of ten words in common that cover more than half of the item."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from worker.shared.data_checks.findings import Found, RowsFound
from worker.shared.data_checks.texts import Seen, normal, words
from worker.shared.row_keys import DatasetError

RUN = 10
SHARE = 0.5
MAX_ITEMS = 200_000
MAX_LINE_BYTES = 1 << 20
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_TEXTS = ("text", "question", "prompt", "query", "input", "problem", "sentence", "goal", "ctx", "instruction")


class BenchmarkItems:
    """Compares rows with the items of benchmarks: files of JSON lines with a text, by the name of the benchmark."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._found: dict[str, Found] = {}
        self._items: list[tuple[str, int]] = []
        self._index: dict[int, list[int]] = {}
        self._rows = 0
        for name, path in files.items():
            self.add_items(f"the benchmark {name}", _texts(path))

    def add_items(self, source: str, texts: Iterable[str]) -> None:
        """Compare rows with these texts too. `source` is what they belong to, in the words of a finding."""
        self._found[source] = Found("benchmark_leak")
        for text in texts:
            if len(self._items) == MAX_ITEMS:
                raise DatasetError(f"the benchmarks have more than {MAX_ITEMS} items")
            runs = _runs(words(normal(text)))
            if len(runs):
                for run in set(runs.tolist()):
                    self._index.setdefault(run, []).append(len(self._items))
                self._items.append((source, len(runs) + RUN - 1))

    def add(self, seen: Seen) -> None:
        """Look at a row."""
        self._rows += 1
        if not self._index:
            return
        hits: dict[int, list[int]] = {}
        for place, run in enumerate(_runs(seen.compared_words).tolist()):
            for item in self._index.get(run, ()):
                hits.setdefault(item, []).append(place)
        for item, places in hits.items():
            name, size = self._items[item]
            if _covered(places) > SHARE * size:
                self._found[name].add(seen, " ".join(turn.said for turn in seen.turns))

    def findings(self) -> tuple[RowsFound, ...]:
        """What was found."""
        words = "{count} of {total} rows ({share}) hold an item of "
        return tuple(
            named for name, each in self._found.items() for named in each.finding(words + name, total=self._rows)
        )


def _runs(numbers: np.ndarray) -> np.ndarray:
    """A number for each run of ten words, in order: uint64 of shape (runs,)."""
    if len(numbers) < RUN:
        return np.empty(0, np.uint64)
    wide, total = numbers.astype(np.uint64), np.zeros(len(numbers) - RUN + 1, np.uint64)
    for place in range(RUN):
        total = total * _FACTOR + wide[place : place + len(total)]
    return total ^ (total >> np.uint64(31))


def _covered(places: list[int]) -> int:
    """Words in at least one of the runs that begin there."""
    total, end = 0, -1
    for place in places:
        total += place + RUN - max(place, end)
        end = place + RUN
    return total


def _texts(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), 1):
            if line.strip():
                yield _text(path.name, number, line)


def _text(name: str, number: int, line: bytes) -> str:
    try:
        item: Any = json.loads(line)
    except ValueError:
        item = None
    found = (
        item
        if isinstance(item, str)
        else next((item[key] for key in _TEXTS if isinstance(item, dict) and isinstance(item.get(key), str)), None)
    )
    if found is None:
        raise DatasetError(f"{name}: has no text; write one JSON object with the key 'text' per line", number)
    return found
