"""Counts with their nouns."""

from __future__ import annotations


def many(count: int, word: str, plural: str = "") -> str:
    """A count with its noun: 1 row, 2 rows."""
    return f"{count} {word if count == 1 else plural or f'{word}s'}"
