"""Explains the errors in a job file: where they are, and one sentence for the person who wrote it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from pydantic import BaseModel, ValidationError

from worker.shared.dataset_spec import DatasetSpec
from worker.shared.evaluation_spec import EvaluationSpec
from worker.shared.job_spec import CheckpointSpec, JobSpec, PlacementSpec
from worker.shared.plain_errors import MAX_KEY, in_words, nearest
from worker.shared.schedules import ScheduleSettings
from worker.shared.wire import excerpt

MAX_ERRORS = 50
"""Errors that are explained. The others are counted."""
MAX_SUGGESTIONS = 10
"""Unknown keys that are compared with the known ones, which costs more than everything else here."""
MAX_POINTER = 255

_INSIDE: dict[str, type[BaseModel]] = {
    "datasets": DatasetSpec,
    "checkpoint": CheckpointSpec,
    "placement": PlacementSpec,
    "evaluate": EvaluationSpec,
    "lr_scheduler_kwargs": ScheduleSettings,
}
_CHANGES_BASE = (
    "cannot be used: it changes the weights of the base model, which every session would have to repeat to the last "
    "bit; leave it out, and the adapter begins as that of plain LoRA"
)
REFUSED = {
    "peft_init_lora_weights": _CHANGES_BASE,
    "loftq_config": _CHANGES_BASE,
}
"""Keys of axolotl that a job file has on purpose not, and why."""
_WORDS = {
    "tuple_type": "must be a list",
    "too_short": "must have at least one entry",
    "model_type": "must be keys with values",
    "finite_number": "must be a finite number",
    "string_unicode": "has an unpaired surrogate character",
}


def pointer(parts: Sequence[int | str]) -> str:
    """A JSON pointer (RFC 6901)."""
    text = "/" + "/".join(str(part).replace("~", "~0").replace("/", "~1") for part in parts)
    return excerpt(text, MAX_POINTER)


def limited(errors: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The first errors, and how many there are more."""
    return [*errors[:MAX_ERRORS], *_more(len(errors) - MAX_ERRORS)]


def _more(count: int) -> list[tuple[str, str]]:
    return [("", f"and {count} more error{'' if count == 1 else 's'}")] if count > 0 else []


def explain(error: ValidationError) -> list[tuple[str, str]]:
    """`(JSON pointer, sentence)` for each error in a job file. Suggests the nearest known key for an unknown one.

    The first `MAX_ERRORS` are explained. The work grows with the number of errors, and not faster.
    """
    faults = [(_place(f["loc"]), f) for f in error.errors(include_url=False, include_context=False)]
    # An error inside a list also makes pydantic report the list itself. Only the inner error is useful.
    lists = {place[:depth] for place, _ in faults for depth in range(len(place))}
    by_place: dict[tuple[int | str, ...], list[Mapping[str, Any]]] = {}
    for place, fault in faults:
        if place not in lists:
            by_place.setdefault(place, []).append(fault)
    unknown = [place for place, found in by_place.items() if found[0]["type"] == "extra_forbidden"]
    compared = set(unknown[:MAX_SUGGESTIONS])
    explained = [
        (pointer(place), _either([_sentence(place, fault, suggests=place in compared) for fault in found]))
        for place, found in islice(by_place.items(), MAX_ERRORS)
    ]
    return explained + _more(len(by_place) - MAX_ERRORS)


def _place(location: Sequence[int | str]) -> tuple[int | str, ...]:
    """The location without the names of a union's branches, which are not keys of the file."""
    if not location or location[0] in _INSIDE:
        return tuple(location)
    return (location[0], *(part for part in location[1:] if isinstance(part, int)))


def _sentence(place: Sequence[int | str], fault: Mapping[str, Any], *, suggests: bool) -> str:
    if fault["type"] == "extra_forbidden":
        known = _INSIDE[str(place[0])] if len(place) > 1 else JobSpec
        key = str(place[-1])
        if known is JobSpec and key in REFUSED:
            return REFUSED[key]
        return f"unknown key '{excerpt(key, MAX_KEY)}'" + (nearest(key, known.model_fields) if suggests else "")
    if isinstance(fault["input"], float) and math.isnan(fault["input"]):
        return "must be a number"
    return _WORDS.get(fault["type"]) or in_words(fault)


def _either(sentences: Sequence[str]) -> str:
    """One sentence for a value that fits no branch of a union."""
    first, *others = dict.fromkeys(sentences)
    return ", or be ".join([first, *(other.removeprefix("must be ") for other in others)])
