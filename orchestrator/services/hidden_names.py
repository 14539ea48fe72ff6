"""Hides persons, accounts and addresses in what machines say, because people who may not know them read it."""

from __future__ import annotations

import re
from typing import Any, cast

_HIDDEN = re.compile(
    r"https?://[^\s'\"]+|host='[^']*'|[\w.+-]+@[\w.-]+\.\w+|/(?:home|Users)/[^/\s]+|\b\d+\.\d+\.\d+\.\d+\b"
)
"""Matches addresses of all kinds, and home folders that are named after people."""


def without_addresses(text: str) -> str:
    """The text without addresses, because an address may be a permission, and without home folders."""
    return _HIDDEN.sub("***", text)


def hidden(value: Any, names: set[str]) -> Any:
    """The JSON value with all names of persons, accounts and addresses removed from its texts."""
    if isinstance(value, dict):
        return {k: hidden(v, names) for k, v in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [hidden(v, names) for v in cast("list[Any]", value)]
    if not isinstance(value, str):
        return value
    text = without_addresses(value)
    for name in sorted(names, key=len, reverse=True):
        text = re.sub(rf"\b{re.escape(name)}\b", "***", text, flags=re.IGNORECASE) if name else text
    return text
