"""Rows of preferences as LLaMA-Factory's files have them, as rows with the usual columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from worker.shared.row_keys import CALLS

CONVERSATIONS = ("conversations", "messages")
"""Columns with the turns before an answer, or with the answer as the last one."""
_SIDES = ("chosen", "rejected")
_WHOLE = {f"{side}_messages": side for side in _SIDES}
"""Columns with a whole conversation each, in the form of its version 1."""


def usual_column(name: str) -> str:
    """The usual name of a column."""
    return _WHOLE.get(name, name)


def as_pair(record: dict[str, Any], roles: Mapping[str, str]) -> dict[str, Any]:
    """A row whose `chosen` and `rejected` are single turns after those of a conversation, or have other names.

    Other rows as they are. `roles` are the usual names of ShareGPT's roles.
    """
    if not record.keys() & set(_SIDES):
        return {usual_column(name): value for name, value in record.items()}
    if not all(isinstance(record.get(side), dict) for side in _SIDES):
        return record
    column = _conversation_of(record)
    rest = {key: value for key, value in record.items() if key != column}
    begun = {"prompt": _usual(record[column], roles)} if column else {}
    return {**rest, **begun, **{side: _usual([record[side]], roles) for side in _SIDES}}


def as_rated(record: dict[str, Any], roles: Mapping[str, str]) -> dict[str, Any]:
    """A row whose `label` is about the last turn of a conversation. Other rows as they are."""
    column = _conversation_of(record)
    if column is None or record.get("completion") is not None:
        return record
    turns = _usual(record[column], roles)
    rest = {key: value for key, value in record.items() if key != column}
    return {**rest, "prompt": turns[:-1], "completion": turns[-1:]}


def _conversation_of(record: Mapping[str, Any]) -> str | None:
    return next((column for column in CONVERSATIONS if isinstance(record.get(column), list)), None)


def _usual(turns: list[Any], roles: Mapping[str, str]) -> list[Any]:
    """ShareGPT's turns with the usual names. What is no turn stays as it is, and is refused where turns are read."""
    return [_turn(cast("dict[str, Any]", each), roles) if isinstance(each, dict) else each for each in turns]


def _turn(turn: dict[str, Any], roles: Mapping[str, str]) -> dict[str, Any]:
    if "from" not in turn or "role" in turn:
        return turn
    speaker, text = turn["from"], turn.get("value")
    said = {CALLS[0]: text} if speaker == "function_call" else {"content": text}
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    return {"role": roles.get(speaker, speaker) if isinstance(speaker, str) else speaker, **said, **rest}
