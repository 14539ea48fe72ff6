"""One turn of a conversation: its text, its thought, its tool calls, and what it says of its training.

The names are those of OpenAI's files and of axolotl. Every function raises `DatasetError` with the line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

from worker.shared.row_keys import CALLS, OF_AN_ANSWER, THOUGHTS, TRAINING, WEIGHTS, DatasetError, is_empty, truth
from worker.shared.rows import Message

MAX_CALLS, MAX_TOOLS = 128, 1_000
_KEYS_OF_PARTS = {"reasoning": THOUGHTS[0], "tool_call": CALLS[0]}
_Json = dict[str, Any]
_Refuse = Callable[[str], DatasetError]


def message(turn: Mapping[str, Any], role: str, content: Any, column: str, line: int) -> Message:
    """The turn with everything that is read of it. `content` is a string, a list of parts of text, or None."""

    def refuse(words: str) -> DatasetError:
        return DatasetError(f"a turn in '{column}' {words}", line)

    is_answer = role == "assistant"
    turn, content = _parts_by_kind(turn, content, refuse)
    thought = _thought(turn, refuse) if is_answer else ""
    calls = _calls(turn, refuse) if is_answer else ()
    if role != "assistant" and (key := next((key for key in (*CALLS, *THOUGHTS) if not is_empty(turn.get(key))), "")):
        raise refuse(f"has the role '{role}' and '{key}', which only an assistant's turn has; change one of them")
    text = _content(content, has_calls=bool(calls), refuse=refuse)
    name, call_id = (_string(turn, key, refuse) for key in OF_AN_ANSWER) if role == "tool" else ("", "")
    written = sys.intern(json.dumps(calls, ensure_ascii=False)) if calls else ""
    return Message(role, text, thought, written, name, call_id, _train(turn, is_answer, refuse))


def tools(record: Mapping[str, Any], line: int) -> str:
    """The schemas of a row's tools as a JSON list, or "". A bare function becomes one in OpenAI's form."""
    given = [key for key in ("tools", "functions") if not is_empty(record.get(key))]
    if not given:
        return ""
    if len(given) > 1:
        raise DatasetError("has both 'tools' and 'functions'; keep one of them", line)
    found = _list(record[given[0]], f"'{given[0]}'", line)
    schemas = [_schema(each, given[0], line) for each in found]
    return sys.intern(json.dumps(schemas, ensure_ascii=False))


def _list(value: Any, what: str, line: int) -> list[Any]:
    if isinstance(value, str):
        value = _parsed(value, what, line)
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise DatasetError(f"{what} must be a list of at most {MAX_TOOLS} schemas of functions", line)
    return cast("list[Any]", value)


def _parsed(text: str, what: str, line: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise DatasetError(f"{what} is not valid JSON; write it as an object, or as JSON text", line) from None


def _schema(value: Any, key: str, line: int) -> _Json:
    if isinstance(value, str):
        value = _parsed(value, f"an entry of '{key}'", line)
    found: Any = cast(_Json, value) if isinstance(value, dict) else {}
    is_bare = "function" not in found and isinstance(found.get("name"), str)
    schema: Any = {"type": "function", "function": found} if is_bare else found
    function: Any = schema.get("function")
    if not isinstance(function, dict) or not isinstance(cast(_Json, function).get("name"), str):
        raise DatasetError(f"an entry of '{key}' must be the schema of a function, with its 'name'", line)
    return schema


def _thought(turn: Mapping[str, Any], refuse: _Refuse) -> str:
    given = {key: turn[key] for key in THOUGHTS if not is_empty(turn.get(key))}
    if any(not isinstance(thought, str) for thought in given.values()):
        raise refuse(f"has '{next(iter(given))}', which must be a string")
    if len(set(given.values())) > 1:
        raise refuse(f"has {' and '.join(map(repr, given))} with different thoughts; keep one of them")
    return next(iter(given.values()), "")


def _calls(turn: Mapping[str, Any], refuse: _Refuse) -> tuple[_Json, ...]:
    given = [key for key in CALLS if not is_empty(turn.get(key))]
    if not given:
        return ()
    if len(given) > 1:
        raise refuse("has both 'tool_calls' and 'function_call'; keep one of them")
    value = turn[given[0]]
    if isinstance(value, str):
        value = _loaded(value, f"'{given[0]}'", refuse)
    listed: list[Any] = cast("list[Any]", value) if isinstance(value, list) else [value]
    if len(listed) > MAX_CALLS:
        raise refuse(f"has more than {MAX_CALLS} tool calls; remove the row")
    return tuple(_call(each, refuse) for each in listed)


def _call(value: Any, refuse: _Refuse) -> _Json:
    entry: Any = cast(_Json, value) if isinstance(value, dict) else {}
    if entry.get("type") not in (None, "function"):
        raise refuse(f"calls a tool of type {str(entry['type'])[:40]!r}; only functions are supported")
    function: Any = entry.get("function", entry)
    name: Any = cast(_Json, function).get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name.strip():
        raise refuse("calls a tool without the 'name' of a function; add it or remove the row")
    arguments: Any = cast(_Json, function).get("arguments")
    if isinstance(arguments, str):
        arguments = _loaded(arguments, f"the 'arguments' of the call of {name[:40]}", refuse)
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise refuse(f"calls {name[:40]} with arguments that are not a JSON object; write them as one")
    call_id = entry.get("id")
    identified = {"id": call_id} if isinstance(call_id, str) and call_id else {}
    return {**identified, "type": "function", "function": {"name": name, "arguments": arguments}}


def _loaded(text: str, what: str, refuse: _Refuse) -> Any:
    if not text.strip():
        return {}
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise refuse(f"has {what[:80]} that are not valid JSON; write an object, or JSON text") from None


def _content(value: Any, *, has_calls: bool, refuse: _Refuse) -> str:
    if isinstance(value, str):
        return value
    if value is None and has_calls:
        return ""
    if not isinstance(value, list):
        raise refuse("needs a string as its text, or a list of parts of text")
    return "".join(_part(each, refuse) for each in cast("list[Any]", value))


def _parts_by_kind(turn: Mapping[str, Any], content: Any, refuse: _Refuse) -> tuple[Mapping[str, Any], Any]:
    """The turn with its thoughts and calls under the usual keys, and its other parts.

    LLaMA-Factory writes all of them as parts.
    """
    parts = [cast(_Json, part) for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    found: dict[str, list[Any]] = {}
    for part in parts:
        if (key := _KEYS_OF_PARTS.get(str(part.get("type")))) is not None:
            found.setdefault(key, []).append(part.get("value", part.get("text")))
    if not found:
        return turn, content
    if doubled := next((key for key in found if not is_empty(turn.get(key))), ""):
        raise refuse(f"has '{doubled}' and parts that say the same; keep one of them")
    usual: _Json = {}
    if thoughts := found.get(THOUGHTS[0]):
        usual[THOUGHTS[0]] = "".join(map(str, thoughts))
    if calls := found.get(CALLS[0]):
        usual[CALLS[0]] = [
            _loaded(each, "parts of type tool_call", refuse) if isinstance(each, str) else each for each in calls
        ]
    rest = [part for part in content if not (isinstance(part, dict) and part.get("type") in _KEYS_OF_PARTS)]
    return {**turn, **usual}, rest


def _part(value: Any, refuse: _Refuse) -> str:
    if isinstance(value, str):
        return value
    part: Any = cast(_Json, value) if isinstance(value, dict) else {}
    key = "value" if "text" not in part and "value" in part else "text"
    text = part.get(key)
    if part.get("type", "text") != "text":
        raise refuse(f"has a part of type {str(part['type'])[:40]!r}, which is not text; remove the row or the part")
    if not isinstance(text, str):
        raise refuse("has a part without 'text'; write it as {'type': 'text', 'text': ...}")
    if more := sorted(str(each)[:40] for each in part if each not in ("type", key) and not is_empty(part[each])):
        raise refuse(f"has a part of text with '{more[0]}', which no format reads; remove the key")
    return text


def _string(turn: Mapping[str, Any], key: str, refuse: _Refuse) -> str:
    value = turn.get(key)
    if is_empty(value):
        return ""
    if not isinstance(value, str):
        raise refuse(f"has '{key}', which must be a string")
    return value


def _train(turn: Mapping[str, Any], is_answer: bool, refuse: _Refuse) -> bool | None:
    """What the turn says of its training. A weight of 1 says nothing of a turn that is no answer."""
    given: dict[str, bool] = {}
    for key in (*TRAINING, *WEIGHTS):
        value = turn.get(key)
        if is_empty(value):
            continue
        wanted = truth(value)
        if wanted is None:
            allowed = "0 or 1; say 0 or 1" if key in WEIGHTS else "true or false; say one of them"
            raise refuse(f"has {key} {str(value)[:40]}, and a turn is trained on or not: {allowed}")
        if not (key in WEIGHTS and wanted and not is_answer):
            given[key] = wanted
    if len(set(given.values())) > 1:
        raise refuse(f"has {' and '.join(given)}, which contradict each other; keep one of them")
    return next(iter(given.values()), None)
