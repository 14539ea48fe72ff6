"""Identifiers: short, sortable by time of birth, unguessable enough not to collide."""

from __future__ import annotations

import secrets

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: str, now: float) -> str:
    """For example `job-01kaz5v9h4q7rtw2`: prefix, milliseconds since the epoch (9 characters), 7 random characters."""
    return first_id(prefix, now) + "".join(_ALPHABET[byte & 31] for byte in secrets.token_bytes(7))


def first_id(prefix: str, at: float) -> str:
    """What sorts before every id made since then."""
    stamp = int(at * 1000)
    return f"{prefix}-" + "".join(_ALPHABET[(stamp >> shift) & 31] for shift in range(40, -1, -5))
