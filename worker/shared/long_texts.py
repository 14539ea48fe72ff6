"""How a text of more than `sequence_len` tokens is split into pieces.

A piece begins with the last token of the piece before, so that every token but the first of the text is predicted once.
"""

from __future__ import annotations

from typing import Literal

Strategy = Literal["truncate", "split"]
TRUNCATE: Strategy = "truncate"
SPLIT: Strategy = "split"
MAX_PIECES = 20_000_000
"""Of the rows that a job trains on. Their order is in memory."""


def piece_count(tokens: int, length: int) -> int:
    """Number of pieces of a text of `tokens` tokens, with at most `length` (2 or more) tokens each."""
    return max(1, -(-(tokens - 1) // (length - 1)))


def piece_start(place: int, length: int) -> int:
    """The first token of the piece in this place (0-based)."""
    return place * (length - 1)
