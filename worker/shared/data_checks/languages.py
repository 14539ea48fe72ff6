"""The language of each conversation, by `py3langid`, and the rows in another one than most."""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Any

from worker.shared.data_checks.findings import Found, RowsFound
from worker.shared.data_checks.texts import Seen

LEAST_CHARACTERS = 60
"""Of a text with a language. Shorter ones are guessed wrong too often."""
MAX_CHARACTERS = 240
"""Of a row that are looked at. More take longer and change few names."""
ALL_OF, THEN_EVERY = 2_000, 5
"""The first rows are all classified, and then every fifth, because nothing else takes as long."""
AWAY = "py3langid is not installed (pip install py3langid)"


class Languages:
    """Names the language of each row. `away` says why it cannot."""

    def __init__(self) -> None:
        self._classify: Any = None
        self.away = ""
        self._names: list[str] = []
        self._rows, self._lines, self._languages = array("Q"), array("Q"), array("B")
        try:
            import py3langid

            self._classify = py3langid.classify
        except ImportError:
            self.away = AWAY

    def add(self, seen: Seen) -> None:
        """Look at a row."""
        if self._classify is None or (seen.number >= ALL_OF and seen.number % THEN_EVERY):
            return
        text = prose(seen)
        if len(text) < LEAST_CHARACTERS:
            return
        name = self._classify(text)[0]
        if name not in self._names:
            self._names.append(name)
        self._rows.append(seen.number)
        self._lines.append(seen.line)
        self._languages.append(self._names.index(name))

    def findings(self) -> tuple[RowsFound, ...]:
        """The rows in another language than most. No row is removed for its language."""
        counts = Counter(self._languages)
        if len(counts) < 2:
            return ()
        found, (main, _) = Found("language"), counts.most_common(1)[0]
        for row, line, language in zip(self._rows, self._lines, self._languages, strict=True):
            if language != main:
                found.add_row(row, line)
        others = [f"{self._names[n]} {count}" for n, count in counts.most_common(6) if n != main]
        words = (
            "{count} of {total} conversations ({share}) are not in the main language, "
            f"{self._names[main]} ({', '.join(others)})"
        )
        return found.finding(words, total=len(self._rows))


def prose(seen: Seen) -> str:
    """The beginning of what is said in a row, without code."""
    parts, length = [], 0
    for turn in reversed(seen.turns):
        if turn.role in ("user", "assistant"):
            text = " ".join(turn.content[: 4 * MAX_CHARACTERS].split("```")[::2])
            parts.append(text)
            length += len(text)
            if length >= MAX_CHARACTERS:
                break
    return " ".join(" ".join(parts).split())[:MAX_CHARACTERS]
