"""Base classes and field types of the messages and of the job file. Every text, list and number has a maximum.

What a machine says is cut to its maximum, because a message with one long text still has to arrive. What a person
writes is refused beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice
from typing import Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

PROTOCOL_VERSION = 1
"""Increased when an old worker could misread a new server. Compared in `start` and in every manifest."""

MAX_TEXT = 8_192
"""Characters of a machine's text: an error, a sample."""
MAX_WRITTEN = 100_000
"""Characters of one value in a job file."""
MAX_ENTRIES = 1_000
"""Entries of a mapping that a machine sends, for example the versions of its packages."""
MAX_STATE_DEPTH = 16
MAX_STATE_VALUES = 50_000
"""Values in the state of a checkpoint. The largest part is one name for each parameter that was not trained yet."""
MAX_SECONDS = 1e9

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def excerpt(text: str, most: int) -> str:
    """The text, cut to `most` characters. A cut text ends with an ellipsis."""
    return text if len(text) <= most else text[: most - 1] + "…"


def not_blank(text: str) -> str:
    """The text without space around it. Raises `ValueError` if nothing is left, or more than `MAX_WRITTEN`."""
    if len(text) > MAX_WRITTEN:
        raise ValueError(f"must have at most {MAX_WRITTEN:,} characters")
    if not text.strip():
        raise ValueError("must not be empty")
    if any("\ud800" <= sign <= "\udfff" for sign in text):  # no database or tokenizer accepts a lone surrogate
        raise ValueError("has an unpaired surrogate character")
    return text.strip()


NonBlank = Annotated[str, AfterValidator(not_blank)]

Storable = Annotated[str, AfterValidator(lambda text: text.replace("\x00", "\ufffd"))]
"""A NUL, which not every database can store, becomes a replacement character."""

Text = Annotated[Storable, AfterValidator(lambda text: excerpt(text, MAX_TEXT))]
"""Text from a machine."""
Line = Annotated[Storable, AfterValidator(lambda text: excerpt(text, 255))]
"""A short text from a machine, for example the name of its GPU."""
Id = Annotated[Storable, Field(max_length=100)]

Count = Annotated[int, Field(ge=0, lt=2**31)]
Bytes = Annotated[int, Field(ge=0, lt=2**63)]


def _within(low: float, high: float) -> AfterValidator:
    """Moves a number into this range. What is not a number becomes `low`."""

    def moved(value: Any) -> Any:
        return type(value)(low) if math.isnan(value) else type(value)(min(max(value, low), high))

    return AfterValidator(moved)


def _unless_odd(low: float, high: float) -> AfterValidator:
    """Replaces a number outside of this range by None."""
    return AfterValidator(lambda value: value if value is not None and low <= value <= high else None)


Seconds = Annotated[float, _within(0.0, MAX_SECONDS)]
"""A duration that a machine measured."""
Size = Annotated[int, _within(0, 2**53)]
"""A size or count that a machine measured."""
MaybeSeconds = Annotated[float | None, _unless_odd(-MAX_SECONDS, MAX_SECONDS)]
StepSeconds = Annotated[float | None, _unless_odd(1e-9, 1e6)]
"""Seconds of one step. A value that no machine can have becomes None."""
MaybeNumber = Annotated[float | None, _unless_odd(0.0, 1e9)]
MaybeSize = Annotated[int | None, _unless_odd(0, 2**53)]


def first_entries(most: int) -> BeforeValidator:
    """Keeps the first entries of a mapping, before they are read."""

    def cut(found: Any) -> Any:
        return dict(islice(found.items(), most)) if isinstance(found, Mapping) and len(found) > most else found  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType]

    return BeforeValidator(cut)


def first_lines(most: int) -> BeforeValidator:
    """Keeps the oldest entries of a list, before they are read."""
    return BeforeValidator(lambda found: found[:most] if isinstance(found, (list, tuple)) else found)  # pyright: ignore[reportUnknownLambdaType]


def last_entries(most: int) -> BeforeValidator:
    """Keeps the newest entries of a list, before they are read."""
    return BeforeValidator(lambda found: found[-most:] if isinstance(found, (list, tuple)) else found)  # pyright: ignore[reportUnknownLambdaType]


Versions = Annotated[dict[Line, Line], first_entries(MAX_ENTRIES)]
"""Versions of packages by name."""


def is_larger_than(found: Any, *, values: int, depth: int) -> bool:
    """Whether parsed JSON or YAML has more values or levels than these. It looks at no more than `values` values.

    A value that is reached twice, as YAML allows, counts twice.
    """
    seen = 1
    waiting: list[tuple[Any, int]] = [(found, 1)] if isinstance(found, (dict, list, tuple)) else []
    while waiting:
        value, level = waiting.pop()
        inner = cast("Any", value).values() if isinstance(value, dict) else value
        seen += len(inner)
        if seen > values or level > depth:
            return True
        waiting += [(part, level + 1) for part in inner if isinstance(part, (dict, list, tuple))]
    return False


def _bounded(state: dict[str, Any]) -> dict[str, Any]:
    if is_larger_than(state, values=MAX_STATE_VALUES, depth=MAX_STATE_DEPTH):
        raise ValueError(f"must have at most {MAX_STATE_VALUES} values in {MAX_STATE_DEPTH} levels")
    return state


State = Annotated[dict[str, Any], AfterValidator(_bounded)]
"""The small part of a checkpoint's state, as JSON."""


class Wire(BaseModel):
    """Base of all messages between server and worker: immutable, unknown fields ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")


class Written(BaseModel):
    """Base class of what users write. Unknown keys are refused.

    `worker.shared.spec_errors` suggests the nearest key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
