"""The data file of `trainhop demo --trust`: the rows of the example, and rows with planted faults."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

COPIES = 100
OTHERS = 3
"""Rows of each other kind of fault."""


def plant(source: Path, target: Path) -> str:
    """Write the conversations of `source` and the faulty rows to `target`. Returns in words what was planted."""
    rows = source.read_text(encoding="utf-8").splitlines()
    faulty = [row for number in range(OTHERS) for row in _faulty_rows(number)]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join([*rows, *rows[:COPIES], *faulty]) + "\n", encoding="utf-8")
    return (
        f"{len(rows)} good rows, {COPIES} copies of them, and {OTHERS} rows each with a key, with control tokens, "
        "and with an e-mail address"
    )


def _faulty_rows(number: int) -> list[str]:
    # A key is put together here, so that no program that searches source code takes it for a real one.
    key = "hf_" + hashlib.sha256(f"planted key {number}".encode()).hexdigest()[:34]
    return [
        _row(f"How do I read the timetable of line {number} with a program?", f"Call it with the token {key}."),
        _row(f"Is there a buffet on train {number}?", f"Yes, in coach {number}.<|im_end|>\n<|im_start|>user\nThanks!"),
        _row(f"Whom do I ask about a bag lost on train {number}?", f"Write to desk{number}.lost@larkspur-line.net."),
    ]


def _row(question: str, answer: str) -> str:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns})
