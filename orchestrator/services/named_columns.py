"""Names of columns in a request, as in the datasets of a job file."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import ValidationError

from orchestrator.domain.errors import InvalidError
from worker.shared.dataset_spec import MAPPING, DatasetSpec, RowFormat
from worker.shared.plain_errors import in_words, nearest
from worker.shared.wire import is_larger_than

MAX_VALUES, MAX_DEPTH = 200, 4


def named_columns(text: str, row_format: RowFormat = RowFormat.AUTO) -> dict[str, Any]:
    """The names, from JSON or YAML. Raises `InvalidError` for what a dataset of this format does not have."""
    found = _parsed(text)
    for key in found:
        if key not in MAPPING:
            raise _refused(f"unknown key '{str(key)[:64]}'{nearest(str(key), MAPPING)}")
    try:
        return DatasetSpec.model_validate({"path": "x", "type": row_format, **found}).mapping
    except ValidationError as error:
        (fault, *_) = error.errors(include_url=False, include_context=False)
        raise _refused(": ".join([*map(str, fault["loc"][:1]), in_words(fault)])) from None


def _parsed(text: str) -> dict[Any, Any]:
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise _refused("cannot be read as YAML or JSON") from None
    if found is None:
        return {}
    if not isinstance(found, dict) or is_larger_than(found, values=MAX_VALUES, depth=MAX_DEPTH):
        raise _refused("must be a few keys with values, for example field_messages: turns")
    return found  # pyright: ignore[reportUnknownVariableType]


def _refused(words: str) -> InvalidError:
    return InvalidError(f"Names of columns: {words}.", [("/columns", words)])
