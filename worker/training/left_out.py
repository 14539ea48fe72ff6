"""Finds what a chat template leaves out of a conversation: turns, tool calls, tools, thoughts. It would not be taught.

Templates strip and move white space, so texts are compared without it. Some move the system turn, write a turn as JSON,
or drop an empty thought.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from worker.shared.rows import Message, Row
from worker.training.interface import PermanentError

_EMPTY_THOUGHT = re.compile(r"<think>\s*</think>")
_AHEAD = ("system", "developer")
"""Roles whose turn a template may move."""
_SHOWN = 40
"""Maximum characters of a turn that an error shows."""
_HIDDEN = "\0"
"""Stands for a character that belongs to another turn."""

Render = Callable[[Sequence[Message], str], str]
"""The text of messages with these tools. Raises `PermanentError` for a conversation that the template refuses."""
_NOT_RENDERED = "use a model with a chat template that writes tool calls, or remove the row"


@dataclass(frozen=True)
class _Shape:
    """What a turn has, without its words. Rows of one shape are written alike."""

    role: str
    has_content: bool
    has_thought: bool
    calls: tuple[bool, ...]
    has_name: bool
    has_id: bool


class LeftOut:
    """Answers what of a conversation a template leaves out."""

    def __init__(self, render: Render) -> None:
        self._by_shape = lru_cache(maxsize=64)(self._of_shape)
        self._render = render

    def reason(self, row: Row, text: str) -> str:
        """Why `text`, the rendering of the row's messages, is not all of them. Empty if it is.

        Thoughts are not looked at.
        """
        messages = row.messages
        swallowed = self._swallowed(row)
        turn = next((turn for turn, what in swallowed if what == "content" and messages[turn].content.strip()), None)
        if turn is None:
            turn = _first_missing(messages, text)
        if turn is not None:
            return _words(messages, turn, text)
        if row.tools and (any(what == "tools" for _, what in swallowed) or not _has_tools(row, text)):
            return f"the chat template leaves out the tools of the row; {_NOT_RENDERED}"
        lost = {turn for turn, what in swallowed if what == "call"} | _missing_calls(messages, text)
        if lost:
            name = json.loads(messages[min(lost)].calls)[0]["function"]["name"][:_SHOWN]
            return f"the chat template leaves out the tool call of turn {min(lost) + 1} ('{name}'); {_NOT_RENDERED}"
        return ""

    def thoughts(self, row: Row, text: str) -> list[int]:
        """The turns whose thought is not in `text`."""
        turns = [turn for turn, message in enumerate(row.messages) if message.thought.strip()]
        if not turns:
            return []
        swallowed = {turn for turn, what in self._swallowed(row) if what == "thought"}
        squeezed = _squeezed(text)
        return [turn for turn in turns if turn in swallowed or _find(squeezed, row.messages[turn].thought, 0) is None]

    def _swallowed(self, row: Row) -> tuple[tuple[int, str], ...]:
        return self._by_shape(tuple(map(_shape, row.messages)), bool(row.tools))

    def _of_shape(self, shapes: tuple[_Shape, ...], has_tools: bool) -> tuple[tuple[int, str], ...]:
        """What the template leaves out, whatever it says: turn and part. A short text could be found elsewhere."""
        ids = (f"id{number:07x}" for number in range(16**6))
        asked: list[str] = []
        turns: list[Message] = []
        for turn, shape in enumerate(shapes):
            turns.append(_marked(turn, shape, ids, asked))
        try:
            squeezed = _squeezed(self._render(turns, _marked_tools() if has_tools else ""))
        except PermanentError:
            return ()  # the template expects a certain content
        lost = [(turn, part) for turn, shape in enumerate(shapes) for part in _lost(turn, shape, squeezed)]
        if has_tools and not all(mark in squeezed for mark in ("toolnamemark", "parametermark")):
            lost.append((0, "tools"))
        return tuple(lost)


def holds(text: str, message: Message) -> bool:
    """Whether `text` has all words of the turn, and the names of the tools that it calls."""
    squeezed = _squeezed(text)
    if _find(squeezed, message.content, 0) is None:
        return False
    names = [call["function"]["name"] for call in json.loads(message.calls)] if message.calls else []
    return all(_squeezed(name) in squeezed for name in names)


def _shape(message: Message) -> _Shape:
    calls = tuple("id" in call for call in json.loads(message.calls)) if message.calls else ()
    return _Shape(
        role=message.role,
        has_content=bool(message.content.strip()) or not calls,
        has_thought=bool(message.thought),
        calls=calls,
        has_name=bool(message.name),
        has_id=bool(message.call_id),
    )


def _marked(turn: int, shape: _Shape, ids: Iterator[str], asked: list[str]) -> Message:
    """The turn with marks for words. `asked` are the ids of calls that are not answered yet."""
    calls: list[dict[str, Any]] = []
    for number, has_id in enumerate(shape.calls):
        function = {"name": f"turn{turn:x}name{number:x}mark", "arguments": {"x": f"turn{turn:x}value{number:x}mark"}}
        given = {"id": next(ids)} if has_id else {}
        asked += given.values()
        calls.append({**given, "type": "function", "function": function})
    return Message(
        shape.role,
        f"turn{turn:x}mark" if shape.has_content else "",
        thought=f"turn{turn:x}thoughtmark" if shape.has_thought else "",
        calls=json.dumps(calls) if calls else "",
        name="tool" if shape.has_name else "",
        call_id=(asked.pop(0) if asked else next(ids)) if shape.has_id else "",
    )


def _marked_tools() -> str:
    parameters = {"type": "object", "properties": {"parametermark": {"type": "string", "description": "x"}}}
    function = {"name": "toolnamemark", "description": "x", "parameters": parameters}
    return json.dumps([{"type": "function", "function": function}])


def _lost(turn: int, shape: _Shape, squeezed: str) -> Iterator[str]:
    if shape.has_content and f"turn{turn:x}mark" not in squeezed:
        yield "content"
    if shape.has_thought and f"turn{turn:x}thoughtmark" not in squeezed:
        yield "thought"
    for number in range(len(shape.calls)):
        if any(f"turn{turn:x}{part}{number:x}mark" not in squeezed for part in ("name", "value")):
            yield "call"


def _has_tools(row: Row, text: str) -> bool:
    squeezed = _squeezed(text)
    return all(_squeezed(tool["function"]["name"]) in squeezed for tool in json.loads(row.tools))


def _missing_calls(messages: Sequence[Message], text: str) -> set[int]:
    """Turns one of whose calls has a name or a text among its arguments that is not in the rendering."""
    called = [turn for turn, message in enumerate(messages) if message.calls]
    squeezed = _squeezed(text) if called else ""
    return {
        turn
        for turn in called
        if any(_find(squeezed, word, 0) is None for call in json.loads(messages[turn].calls) for word in _texts(call))
    }


def _texts(call: dict[str, Any]) -> Iterator[str]:
    yield call["function"]["name"]
    left: list[Any] = [call["function"]["arguments"]]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list):
            left += value
        elif isinstance(value, str):
            yield value


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
    if role == "assistant" and end and answer.strip() and _find(_squeezed(text), answer, 0) is not None:
        return (
            f"the chat template leaves out the thought of turn {turn + 1} ('{thought[:_SHOWN]}...'); remove the text "
            "up to </think> from the row, or use a model with a template that keeps the thoughts of all answers"
        )
    if role in _AHEAD:
        return f"{what}; write its text into the first user turn, or use a model with a template that has a {role} turn"
    return f"{what}; remove the turn from the row, or use a model with a template that has such turns"
