"""Faults inside one conversation: turns that repeat, and answers that stop in the middle."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np

from worker.shared.data_checks.findings import Found, RowsFound
from worker.shared.data_checks.texts import Seen, overlap, shingles

ALIKE = 0.8
LEAST_WORDS = 5
"""Words of a turn that counts as a repetition. People say thank you twice."""
MAX_TURNS = 40
"""Turns of one role that are compared with each other."""
PROSE_WORDS = 8
"""Words of a last line that has to end with a mark."""
_CLOSED = re.compile(r"[.!?…:;。！？।॥؟。»”’\"')\]}>*_`~|=%\d$€£]\s*$|[\U0001F000-\U0001FAFF\u2600-\u27BF\uFE0F]\s*$")
_NOT_PROSE = re.compile(r"\s*(?:[-*+•#>|]|\d+[.)]|[A-Za-z][.)]\s|https?://|\{|\[|<)")


class Turns:
    """Looks at the turns of each row."""

    def __init__(self) -> None:
        self._repeated, self._cut = Found("repeated_turns"), Found("truncated_answers")
        self._conversations = self._answered = 0

    def add(self, seen: Seen) -> None:
        """Look at a row."""
        self._conversations += len(seen.turns) > 1
        if len(seen.turns) > 2 and (text := _repetition(seen)):
            self._repeated.add(seen, text)
        if seen.answers:
            self._answered += 1
            text = seen.answers[-1].content
            if is_cut(text):
                self._cut.add(seen, text, max(0, len(text.rstrip()) - 60))

    def findings(self) -> tuple[RowsFound, ...]:
        """What was found."""
        return self._repeated.finding(
            "{count} of {total} conversations ({share}) have a turn that repeats another one",
            total=self._conversations,
        ) + self._cut.finding(
            "{count} of {total} answers ({share}) end without a closing mark, or with open code", total=self._answered
        )


def is_cut(answer: str) -> bool:
    """Whether an answer seems to stop in the middle: open code, or a last line of prose without a closing mark."""
    if answer.count("```") % 2:
        return True
    last = answer.rstrip().rpartition("\n")[2]
    if len(last.split()) < PROSE_WORDS or _NOT_PROSE.match(last):
        return False
    return not _CLOSED.search(last)


def _repetition(seen: Seen) -> str:
    """The text of a turn that repeats an earlier one of the same role, or nothing."""
    for role in ("assistant", "user"):
        places = [
            place
            for place, turn in enumerate(seen.turns)
            if turn.role == role and len(seen.turn_words[place]) >= LEAST_WORDS
        ][:MAX_TURNS]
        texts = [seen.normal_turns[place] for place in places]
        if len(set(texts)) < len(texts):
            return next(seen.turns[p].said for n, p in enumerate(places) if texts[n] in texts[:n])
        runs = {place: shingles(seen.turn_words[place]) for place in places} if len(places) > 1 else {}
        for first, second in combinations(places, 2):
            if _are_alike(runs[first], runs[second]):
                return seen.turns[second].said
    return ""


def _are_alike(first: np.ndarray, second: np.ndarray) -> bool:
    if min(len(first), len(second)) < ALIKE * max(len(first), len(second)):
        return False
    both = overlap(first, second)
    return both >= ALIKE * (len(first) + len(second) - both)
