"""Rows with the same prompt and answers that contradict each other."""

from __future__ import annotations

import re
from array import array

import numpy as np

from worker.shared.data_checks.findings import Found, RowsFound
from worker.shared.data_checks.number_file import NumberFile
from worker.shared.data_checks.texts import Seen, key, overlap

JACCARD = 0.3
COMPARED = 50
"""Answers to one prompt that are compared with its first one."""
_NUMBER = re.compile(r"(?<![\w.,])\d+(?:[.,]\d+)*(?![\w])")
_YES = {"yes", "ja", "oui", "sí", "si", "हाँ", "हां"}
_NO = {"no", "nein", "non", "नहीं"}


class Contradictions:
    """Compares the last answers of rows that have all turns before it in common."""

    def __init__(self, runs: NumberFile) -> None:
        self._answers = runs
        self._prompts, self._numbers, self._lines, self._rows = array("Q"), array("Q"), array("Q"), array("Q")
        self._words = array("b")

    def add(self, seen: Seen) -> None:
        """Add a row."""
        prompt = seen.prompt_key
        if prompt is None or seen.last_answer is None or seen.row.desirable is False:
            return
        text = seen.normal_turns[seen.last_answer]
        self._prompts.append(prompt)
        numbers = sorted(set(_NUMBER.findall(text)))
        self._numbers.append(key(" ".join(numbers)) if numbers else 0)
        self._lines.append(seen.line)
        self._rows.append(seen.number)
        first = text.split(maxsplit=1)[0].strip(".,!;:") if text else ""
        self._words.append(1 if first in _YES else -1 if first in _NO else 0)
        self._answers.add(seen.turn_words[seen.last_answer])

    def findings(self) -> tuple[RowsFound, ...]:
        """The contradictions. A clean copy leaves out all rows of one, because no one knows which is right."""
        found = Found("contradictions")
        prompts = np.frombuffer(self._prompts, np.uint64) if self._prompts else np.empty(0, np.uint64)
        order = np.argsort(prompts, kind="stable")
        begins = np.flatnonzero(np.r_[True, prompts[order][1:] != prompts[order][:-1]]) if len(order) else order
        groups = [group for group in np.split(order, begins[1:]) if len(group) > 1]
        involved: set[int] = set()
        for group in sorted(groups, key=lambda group: int(group[0])):
            first = int(group[0])
            against = [int(other) for other in group[1:COMPARED] if self._contradict(first, int(other))]
            if against:
                found.add_row(self._rows[against[0]], self._lines[against[0]], self._lines[first])
                involved |= {self._rows[place] for place in (first, *against)}
        words = "{count} of {total} prompts ({share}) have answers that contradict each other"
        return found.finding(words, total=max(1, len(begins)), removed=involved)

    def _contradict(self, first: int, second: int) -> bool:
        if self._words[first] * self._words[second] < 0:
            return True
        numbers = self._numbers[first], self._numbers[second]
        if all(numbers) and numbers[0] != numbers[1]:
            return True
        one, other = np.unique(self._answers.get(first)), np.unique(self._answers.get(second))
        both = overlap(one, other)
        return both < JACCARD * (len(one) + len(other) - both)
