"""What is wrong with a job file: where, and in words for the person who wrote it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from worker.shared.messages import CheckpointSpec, DatasetSpec, JobSpec, PlacementSpec

_INSIDE: dict[str, type[BaseModel]] = {
    "datasets": DatasetSpec,
    "checkpoint": CheckpointSpec,
    "placement": PlacementSpec,
}
_WORDS = {
    "tuple_type": "must be a list",
    "too_short": "must have at least one entry",
    "model_type": "must be keys with values",
    "finite_number": "must be a finite number",
    "string_unicode": "holds half a character",
}


def pointer(parts: Sequence[int | str]) -> str:
    """A JSON pointer (RFC 6901)."""
    return "/" + "/".join(str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def explain(error: ValidationError) -> list[tuple[str, str]]:
    """`(JSON pointer, sentence)` for each fault of a job file, naming the nearest known key for an unknown one."""
    faults = [(_place(f["loc"]), f) for f in error.errors(include_url=False, include_context=False)]
    found: dict[str, list[str]] = {}
    for place, fault in faults:
        # A list is called too short, or not the word that may stand in its place, because of what is wrong in it.
        deeper = any(len(other) > len(place) and other[: len(place)] == place for other, _ in faults)
        if not deeper:
            found.setdefault(pointer(place), []).append(_sentence(place, fault))
    return [(where, _either(sentences)) for where, sentences in found.items()]


def _place(location: Sequence[int | str]) -> tuple[int | str, ...]:
    """Without the names of a union's branches, which are no keys of the file."""
    if not location or location[0] in _INSIDE:
        return tuple(location)
    return (location[0], *(part for part in location[1:] if isinstance(part, int)))


def _sentence(place: Sequence[int | str], fault: Mapping[str, Any]) -> str:
    if fault["type"] == "extra_forbidden":
        known = _INSIDE[str(place[0])] if len(place) > 1 else JobSpec
        near = difflib.get_close_matches(str(place[-1]), known.model_fields, n=1, cutoff=0.5)
        return f"unknown key '{place[-1]}'" + (f"; did you mean '{near[0]}'?" if near else "")
    if isinstance(fault["input"], float) and math.isnan(fault["input"]):
        return "must be a number"
    return _WORDS.get(fault["type"]) or fault["msg"].removeprefix("Value error, ")


def _either(sentences: Sequence[str]) -> str:
    """One sentence for the branches of a union, of which the value fits none."""
    first, *others = dict.fromkeys(sentences)
    return ", or be ".join([first, *(other.removeprefix("Input should be ") for other in others)])
