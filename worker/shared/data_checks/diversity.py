"""How much answers differ: the share of the commonest beginning, and of different words among the first 10,000."""

from __future__ import annotations

from collections import Counter

import numpy as np

from worker.shared.data_checks.findings import Found, RowsFound
from worker.shared.data_checks.masking import masked
from worker.shared.data_checks.texts import Seen

OPENING = 3
"""Words of a beginning."""
LEAST_WORDS = 8
"""Words of an answer whose beginning counts. A label is not a text."""
WORDS = 10_000
MAX_OPENINGS = 50_000
"""Different beginnings that are counted. A common one is among the first."""
LEAST_ANSWERS = 20


class Diversity:
    """Counts the beginnings and the words of all answers."""

    def __init__(self) -> None:
        self._openings: Counter[str] = Counter()
        self._answers = 0
        self._kinds: set[int] = set()
        self._words = 0

    def add(self, seen: Seen) -> None:
        """Look at a row."""
        for turn in seen.answers:
            text = seen.normal_turns[seen.turns.index(turn)]
            first = text.split(maxsplit=LEAST_WORDS)
            if len(first) >= LEAST_WORDS:
                self._count(" ".join(first[:OPENING])[:80])
        if self._words < WORDS:
            for turn, words in zip(seen.turns, seen.turn_words, strict=True):
                part = words[: WORDS - self._words] if turn.role == "assistant" else np.empty(0, np.uint32)
                self._words += len(part)
                self._kinds.update(part.tolist())

    def _count(self, opening: str) -> None:
        self._answers += 1
        if opening in self._openings or len(self._openings) < MAX_OPENINGS:
            self._openings[opening] += 1

    def figures(self) -> tuple[tuple[str, float], ...]:
        """The share of different words, if there are enough."""
        return (("different words in 10,000", round(len(self._kinds) / WORDS, 4)),) if self._words >= WORDS else ()

    def findings(self) -> tuple[RowsFound, ...]:
        """The commonest beginning. No row is removed for it."""
        if self._answers < LEAST_ANSWERS:
            return ()
        (opening, count), found = self._openings.most_common(1)[0], Found("diversity")
        share = count / self._answers
        if found.check.level(share) == "list":
            return ()
        shown = masked(opening).replace("{", "{{").replace("}", "}}")
        words = f"{{count}} of {{total}} answers ({{share}}) begin with “{shown}”"
        return found.finding(words, total=self._answers, count=count)
