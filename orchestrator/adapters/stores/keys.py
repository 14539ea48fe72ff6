"""The format of keys in every store."""

from __future__ import annotations

import re

from orchestrator.ports.stores import StoreError

_KEY = re.compile(r"[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*")


def is_key(key: str) -> bool:
    """Whether the server would have made this key."""
    return _KEY.fullmatch(key) is not None and ".." not in key


def checked(key: str) -> str:
    """The key. Raises `StoreError` if the server would not have made it."""
    if not is_key(key):
        raise StoreError(f"{key!r} is not a valid key")
    return key
