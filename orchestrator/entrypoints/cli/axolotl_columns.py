"""The names of columns in the datasets of axolotl's configuration files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TURNS = {"message_field_role": "role", "message_field_content": "content"}
"""Earlier names of what is in `message_property_mappings`."""
_CHAT = ("field_messages", "message_property_mappings", "roles")
_OF_FORMAT = {
    "messages": (*_CHAT, "field_system"),
    "alpaca": ("field_instruction", "field_input", "field_output", "field_system"),
    "text": ("field",),
}
_USUAL = {"field_messages": "messages", "field_system": "system", "field": "text"}
READ_OF_COLUMNS = (*_CHAT, *_TURNS, "field")
_FORMATS = ("format", "no_input_format", "system_format")


def columns_of(given: Mapping[str, Any], kind: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The names that a dataset of this row format gives, and one sentence for each key that has no counterpart."""
    own: Any = given.get("type")
    named = {str(k): v for k, v in (own if isinstance(own, Mapping) else {}).items() if v not in (None, "", {}, [])}
    inside = frozenset(named)
    named |= {key: given[key] for key in READ_OF_COLUMNS if given.get(key) not in (None, "", {}, [])}
    turns = {_TURNS[key]: named.pop(key) for key in _TURNS if key in named}
    mappings = named.get("message_property_mappings")
    turns |= mappings if isinstance(mappings, Mapping) else {}
    named["message_property_mappings"] = {usual: name for usual, name in turns.items() if usual != name}
    read = _OF_FORMAT.get(kind or "messages", ())
    found = {key: named[key] for key in read if named.get(key) and named[key] != _USUAL.get(key)}
    left = {
        f"type.{key}" if key in inside else key: _words(key)
        for key in sorted(named.keys() - set(read))
        if named[key] and named[key] != _USUAL.get(key)
    }
    return found, left


def _words(key: str) -> str:
    if key in _FORMATS:
        return "rows are written with the model's own chat template"
    if key == "system_prompt":
        return "give the rows a column with it, and name the column with field_system"
    return "rows are read with the usual names of their format"
