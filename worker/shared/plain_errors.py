"""Pydantic's errors in plain words: `must be text` instead of `Input should be a valid string`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

_WORDS = {
    "missing": "is missing",
    "extra_forbidden": "is not a known key",
    "string_type": "must be text",
    "string_unicode": "must be valid Unicode text",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "none_required": "must be empty",
    "bytes_type": "must be bytes",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "set_type": "must be a list",
    "frozen_set_type": "must be a list",
    "dict_type": "must be keys with values",
    "mapping_type": "must be keys with values",
    "model_type": "must be keys with values",
    "model_attributes_type": "must be keys with values",
    "json_type": "must be JSON as text",
    "datetime_parsing": "must be a time, for example 2026-12-01T18:00:00+01:00",
    "datetime_from_date_parsing": "must be a time, for example 2026-12-01T18:00:00+01:00",
    "path_type": "must be a path",
}
_SHA256 = "'^[0-9a-f]{64}$'"
_PHRASES = (
    (re.compile(r"^Value error, "), ""),
    (re.compile(r"^Invalid JSON: "), "is not valid JSON: "),
    (re.compile(r"^Assertion failed, "), ""),
    (re.compile(r"^Input should be greater than or equal to "), "must be at least "),
    (re.compile(r"^Input should be less than or equal to "), "must be at most "),
    (re.compile(rf"^String should match pattern {re.escape(_SHA256)}$"), "must be 64 characters of 0-9 and a-f"),
    (re.compile(r"^String should match pattern "), "must match the pattern "),
    (re.compile(r"^\w+ should have at least 1 (item|character).*"), "must not be empty"),
    (re.compile(r"^\w+ should have at (least|most) (\d+) items?\b.*"), r"must have at \1 \2 entries"),
    (re.compile(r"^\w+ should have at (least|most) (\d+) characters?"), r"must have at \1 \2 characters"),
    (re.compile(r"^Input should (be )?(a valid |an? instance of )?"), "must be "),
)
MAX_KEY = 64


def in_words(fault: Mapping[str, Any]) -> str:
    """One of `ValidationError.errors()` as the end of a sentence that begins with the value's name."""
    if known := _WORDS.get(fault["type"]):
        return known
    words = str(fault["msg"])
    for pattern, plain in _PHRASES:
        words = pattern.sub(plain, words)
    return words


def nearest(key: str, known: Iterable[str]) -> str:
    """`; did you mean 'slots'?` for a misspelt key, or nothing."""
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5) if len(key) <= MAX_KEY else []
    return f"; did you mean '{near[0]}'?" if near else ""
