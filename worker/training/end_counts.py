"""Counts rows without a trained end token, trained tokens that are cut off, and control tokens of a model in turns."""

from __future__ import annotations

from typing import Any

from worker.shared.data_checks.findings import MAX_LINES
from worker.shared.data_checks.template_tokens import COMMON
from worker.shared.data_checks.token_facts import TokenFacts
from worker.shared.rows import Row
from worker.training.encoding import IGNORE
from worker.training.end_tokens import stop_tokens

MAX_SPECIAL = 1_000
AFTER_THE_END = 4
"""Tokens in which an end token counts as the last one. Templates write a line break behind it."""


class EndCounts:
    """Counts row by row. The facts are those of the data checks."""

    def __init__(self, tokenizer: Any, sequence_len: int) -> None:
        self._ends, self._length = stop_tokens(tokenizer), sequence_len
        special = (str(token) for token in tokenizer.all_special_tokens[:MAX_SPECIAL])
        self._special = tuple(token for token in special if 2 < len(token) <= 100 and token not in COMMON)
        self._rows = self._trained = self._cut = self._open = self._with_special = 0
        self._open_lines: list[int] = []
        self._cut_lines: list[int] = []
        self._special_lines: list[int] = []

    def add(self, line: int, row: Row, labels: list[int]) -> None:
        """Count a row. `labels` are those before truncation."""
        self._rows += 1
        taught = [label for label in labels if label != IGNORE]
        beyond = sum(label != IGNORE for label in labels[self._length :])
        self._trained, self._cut = self._trained + len(taught), self._cut + beyond
        if beyond:
            _note(self._cut_lines, line)
        if taught and not self._ends & set(taught[-AFTER_THE_END:]):
            self._open += 1
            _note(self._open_lines, line)
        if any(token in turn.said for turn in row.messages for token in self._special):
            self._with_special += 1
            _note(self._special_lines, line)

    def facts(self) -> TokenFacts:
        """The counts so far."""
        return TokenFacts(
            rows=self._rows,
            open_rows=self._open,
            open_lines=tuple(self._open_lines),
            trained=self._trained,
            cut=self._cut,
            cut_lines=tuple(self._cut_lines),
            special=self._special,
            special_rows=self._with_special,
            special_lines=tuple(self._special_lines),
        )


def _note(lines: list[int], line: int) -> None:
    if len(lines) < MAX_LINES:
        lines.append(line)
