"""Finds the turns of a conversation that a chat template leaves out. Such a turn would not be taught.

Templates strip and move white space, so texts are compared without it. Some move the system turn, write a turn as JSON,
or drop an empty thought.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

from worker.shared.rows import Message
from worker.training.interface import PermanentError

_EMPTY_THOUGHT = re.compile(r"<think>\s*</think>")
_AHEAD = ("system", "developer")
"""Roles whose turn a template may move."""
_SHOWN = 40
"""Maximum characters of a turn that an error shows."""
_HIDDEN = "\0"
"""Stands for a character that belongs to another turn."""

Render = Callable[[tuple[Message, ...]], str]


class LeftOut:
    """Answers which turn of a conversation a template leaves out. `render` raises for a conversation it refuses."""

    def __init__(self, render: Render) -> None:
        self._by_roles = lru_cache(maxsize=64)(self._of_roles)
        self._render = render

    def reason(self, messages: tuple[Message, ...], text: str) -> str:
        """Why `text`, the rendering of `messages`, is not all of them. Empty if it is."""
        swallowed = self._by_roles(tuple(message.role for message in messages))
        turn = next((turn for turn in swallowed if messages[turn].content.strip()), None)
        if turn is None:
            turn = _first_missing(messages, text)
        return "" if turn is None else _words(messages, turn, text)

    def _of_roles(self, roles: tuple[str, ...]) -> tuple[int, ...]:
        """Turns that the template leaves out whatever they say. A short text could be found in another turn."""
        marks = [f"turn{turn:x}mark" for turn in range(len(roles))]
        try:
            text = self._render(tuple(Message(role, mark) for role, mark in zip(roles, marks, strict=True)))
        except PermanentError:
            return ()  # the template expects a certain content
        squeezed = _squeezed(text)
        return tuple(turn for turn, mark in enumerate(marks) if mark not in squeezed)


def holds(text: str, content: str) -> bool:
    """Whether `text` has all words of `content`."""
    return _find(_squeezed(text), content, 0) is not None


def _first_missing(messages: Sequence[Message], text: str) -> int | None:
    squeezed = _squeezed(text)
    everything = list(range(len(messages)))
    ahead = [turn for turn in everything if messages[turn].role in _AHEAD]
    others = [turn for turn in everything if turn not in ahead] if ahead else everything
    missing, _ = _in_order(messages, everything, squeezed)
    if missing is None or not ahead:
        return missing
    missing, without = _in_order(messages, ahead, squeezed)
    if missing is None and _in_order(messages, others, without)[0] is None:
        return None
    missing, without = _in_order(messages, others, squeezed)
    return missing if missing is not None else _in_order(messages, ahead, without)[0]


def _in_order(messages: Sequence[Message], turns: Sequence[int], squeezed: str) -> tuple[int | None, str]:
    """The first of `turns` that does not follow the ones before, and the text with all that were found hidden."""
    at, kept = 0, list[str]()
    for turn in turns:
        found = _find(squeezed, messages[turn].content, at)
        if found is None:
            return turn, squeezed
        begin, end = found
        kept += [squeezed[at:begin], _HIDDEN]
        at = end
    return None, "".join([*kept, squeezed[at:]])


def _find(squeezed: str, content: str, start: int) -> tuple[int, int] | None:
    for form in _forms(content):
        at = squeezed.find(form, start)
        if at >= 0:
            return at, at + len(form)
    return None


def _forms(content: str) -> Iterator[str]:
    """The ways in which a template may write a content."""
    yield _squeezed(content)
    yield _squeezed(_EMPTY_THOUGHT.sub("", content))
    for ascii_only in (False, True):
        yield _squeezed(json.dumps(content, ensure_ascii=ascii_only)[1:-1])


def _squeezed(text: str) -> str:
    return "".join(text.split()).casefold()


def _words(messages: tuple[Message, ...], turn: int, text: str) -> str:
    role, content = messages[turn].role, " ".join(messages[turn].content.split())
    start = content[:_SHOWN] + ("..." if len(content) > _SHOWN else "")
    what = f"the chat template leaves out turn {turn + 1} ({role}, '{start}')"
    thought, end, answer = content.rpartition("</think>")
    if role == "assistant" and end and answer.strip() and holds(text, answer):
        return (
            f"the chat template leaves out the thought of turn {turn + 1} ('{thought[:_SHOWN]}...'); remove the text "
            "up to </think> from the row, or use a model with a template that keeps the thoughts of all answers"
        )
    if role in _AHEAD:
        return f"{what}; write its text into the first user turn, or use a model with a template that has a {role} turn"
    return f"{what}; remove the turn from the row, or use a model with a template that has such turns"
