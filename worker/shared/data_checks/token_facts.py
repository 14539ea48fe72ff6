"""Findings that need the job's tokenizer: whether answers end with a trained end token, and what is cut off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from worker.shared.data_checks.findings import Found, RowsFound


@dataclass(frozen=True, kw_only=True)
class TokenFacts:
    """What a process with the tokenizer has counted in `rows` rows.

    `open_lines` are the lines of the first rows without a trained end token, `open_rows` of them in all. `trained` and
    `cut` are tokens that are trained on, and those of them beyond `sequence_len`. `special` are the control tokens of
    the tokenizer beyond the common ones, and `special_rows` have one of them in a turn. `away` is the reason why
    nothing was counted.
    """

    rows: int = 0
    open_rows: int = 0
    open_lines: tuple[int, ...] = ()
    trained: int = 0
    cut: int = 0
    cut_lines: tuple[int, ...] = ()
    special: tuple[str, ...] = ()
    special_rows: int = 0
    special_lines: tuple[int, ...] = ()
    away: str = ""


def facts_of(data: dict[str, Any]) -> TokenFacts:
    """The facts of their plain data."""
    lists: dict[str, Any] = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
    return TokenFacts(**(data | lists))


def token_findings(facts: TokenFacts) -> tuple[RowsFound, ...]:
    """What the counts say."""
    ends, cuts = Found("end_of_turn"), Found("cut_rows")
    for line in facts.open_lines:
        ends.add_row(line, line)
    for line in facts.cut_lines:
        cuts.add_row(line, line)
    return ends.finding(
        "{count} of {total} rows ({share}) do not train an end token after the last answer",
        total=facts.rows,
        count=facts.open_rows,
        removed=(),
    ) + cuts.finding(
        "{count} of {total} trained tokens ({share}) are beyond sequence_len and are cut off",
        total=facts.trained,
        count=facts.cut,
    )


def special_findings(facts: TokenFacts) -> tuple[RowsFound, ...]:
    """Rows with a control token of this tokenizer, where the pass over all rows did not know the tokenizer."""
    found = Found("template_tokens")
    for line in facts.special_lines:
        found.add_row(line, line)
    words = "{count} of {total} rows ({share}) have a control token of the model in a turn"
    return found.finding(words, total=facts.rows, count=facts.special_rows, removed=())
