"""Form fields for the settings in a driver's schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from orchestrator.services.options import checked

PREFIX = "set-"
"""Of the names of these fields, so that no setting is taken for another field of the form."""
_PLAIN = {"string": "text", "integer": "number", "number": "number", "boolean": "text"}


@dataclass(frozen=True, kw_only=True)
class SettingField:
    """One setting: the field's name, the key, what it is for, its choices, and whether it must be entered."""

    name: str
    key: str
    words: str
    kind: str
    default: str
    choices: tuple[str, ...]
    required: bool


def fields(schema: type[BaseModel]) -> list[SettingField]:
    """The settings that a person enters as one text, number or choice. Others are for the command line."""
    document = schema.model_json_schema()
    found = [_field(key, each, document.get("required", ())) for key, each in document.get("properties", {}).items()]
    return [each for each in found if each is not None]


def _field(key: str, each: dict[str, Any], required: Any) -> SettingField | None:
    options = [each, *each.get("anyOf", ())]
    kind = next((_PLAIN[o["type"]] for o in options if o.get("type") in _PLAIN), None)
    choices = next((o["enum"] for o in options if "enum" in o), [o["const"] for o in options if "const" in o])
    if kind is None:
        return None
    default = each.get("default")
    return SettingField(
        name=f"{PREFIX}{key}",
        key=key,
        words=each.get("description", ""),
        kind=kind,
        default="" if default is None else str(default),
        choices=tuple(map(str, choices)),
        required=key in required,
    )


def read(schema: type[BaseModel], form: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were entered, with the types of the schema. Raises `InvalidError` for a wrong one."""
    given = {
        name.removeprefix(PREFIX): value.strip()
        for name, value in form.items()
        if name.startswith(PREFIX) and isinstance(value, str) and value.strip()
    }
    found = checked(schema, given).model_dump(mode="json")
    return {key: found.get(key, value) for key, value in given.items()}
