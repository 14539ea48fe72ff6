"""Rows of preferences as OpenAI's files for fine-tuning have them, as rows with the usual columns."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

SIDES = {"preferred_output": "chosen", "non_preferred_output": "rejected"}
"""OpenAI's names of both answers, and the usual ones."""
_INPUT, _MESSAGES = "input", "messages"


def has_sides(keys: Collection[str]) -> bool:
    """Whether a row with these keys has both answers under OpenAI's names."""
    return all(name in keys for name in SIDES)


def as_pair(record: dict[str, Any]) -> dict[str, Any]:
    """A row whose `input` has the turns before both answers, and perhaps their tools. Other rows as they are."""
    begun = record.get(_INPUT)
    if not has_sides(record) or not isinstance(begun, dict) or not isinstance(begun.get(_MESSAGES), list):
        return record
    answers = {usual: record[name] for name, usual in SIDES.items()}
    rest = {key: value for key, value in record.items() if key != _INPUT and key not in SIDES}
    more = {key: value for key, value in begun.items() if key != _MESSAGES}
    pair = {"prompt": begun[_MESSAGES], **answers}
    if len(rest | more | pair) < len(rest) + len(more) + len(pair):  # one key would hide another
        return record
    return {**rest, **more, **pair}
