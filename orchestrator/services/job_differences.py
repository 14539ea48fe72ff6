"""In which keys job files differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

NEVER_TOLD = frozenset({"name", "rendered_at"})
"""Keys in which any two jobs differ."""

Difference = tuple[str, list[Any]]
"""A key with its value in each job file, in their order. None where a file does not have the key."""


def differences(specs: Sequence[dict[str, Any]]) -> list[Difference]:
    """The keys in which these job files differ, sorted. Nested keys are written with dots, as for `--set`."""
    flat = [dict(_flat({k: v for k, v in spec.items() if k not in NEVER_TOLD})) for spec in specs]
    found = [(key, [each.get(key) for each in flat]) for key in sorted(set[str]().union(*flat))]
    return [(key, values) for key, values in found if any(value != values[0] for value in values)]


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    parts: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        parts = list(cast("dict[str, Any]", value).items())
    elif isinstance(value, list):
        entries = cast("list[Any]", value)
        parts = list(enumerate(entries)) if any(isinstance(each, dict) for each in entries) else []
    if not parts:
        yield key, value
    for name, part in parts:
        yield from _flat(part, f"{key}.{name}" if key else str(name))
