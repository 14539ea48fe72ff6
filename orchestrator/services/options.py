"""Settings that people choose for an account or a store, checked by the schema of its driver."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from orchestrator.domain.errors import InvalidError
from worker.shared.plain_errors import MAX_KEY, in_words, nearest

MAX_NAMED = 5
"""Unknown keys that are named in an error. Comparing them with the known ones takes time."""
M = TypeVar("M", bound=BaseModel)


def checked(schema: type[M], given: Mapping[str, Any], *, besides: Collection[str] = ()) -> M:
    """The settings as the driver reads them. Raises `InvalidError`, which names every wrong or unknown key.

    Keys in `besides` are for others than the driver.
    """
    faults = _unknown(schema, [key for key in given if key not in besides])
    try:
        found = schema.model_validate(given)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False)
        faults += [(f"/config/{'/'.join(map(str, e['loc']))}", in_words(e)) for e in wrong]
    else:
        if not faults:
            return found
    raise InvalidError("; ".join(f"{pointer[8:]}: {words}" for pointer, words in faults[:MAX_NAMED]), faults) from None


def _unknown(schema: type[BaseModel], given: Collection[str]) -> list[tuple[str, str]]:
    """Keys that the driver would ignore. A driver that takes any key says so with `extra="allow"`."""
    if schema.model_config.get("extra") == "allow":
        return []
    unknown = [key for key in given if key not in schema.model_fields][:MAX_NAMED]
    known = ", ".join(schema.model_fields) or "none"
    return [
        (f"/config/{key[:MAX_KEY]}", f"is not a setting{nearest(key, schema.model_fields) or f'; there are {known}'}")
        for key in unknown
    ]
