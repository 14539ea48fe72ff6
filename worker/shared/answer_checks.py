"""Checks of an answer by a program: exact text, pattern, JSON schema, number with unit.

Patterns and schemas are those of the package `jsonschema-rs`. Its patterns take time that grows with the answer's
length alone, and it looks nothing up on the network. Only who scores answers needs the package.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from worker.shared.plain_errors import in_words
from worker.shared.wire import Written, excerpt, is_larger_than

MAX_CHECK_BYTES = 16 * 2**10
MAX_PATTERN, MAX_TEXT, MAX_TEXTS, MAX_UNIT = 1_000, 4_000, 50, 40
MAX_SCHEMA_VALUES, MAX_SCHEMA_DEPTH = 2_000, 32
MAX_PATTERN_MEMORY = 1 << 20

_OneText = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
_Unit = Annotated[str, Field(min_length=1, max_length=MAX_UNIT)]


class CheckError(ValueError):
    """A check that cannot be used. The message gives the reason."""


class Exact(Written):
    """The whole answer is one of these texts, without white space at both ends."""

    type: Literal["exact"]
    answer: _OneText | Annotated[tuple[_OneText, ...], Field(min_length=1, max_length=MAX_TEXTS)]
    ignore_case: bool = False


class Regex(Written):
    """The pattern is found somewhere in the answer."""

    type: Literal["regex"]
    pattern: Annotated[str, Field(min_length=1, max_length=MAX_PATTERN)]


class JsonSchema(Written):
    """The answer is JSON with this schema, alone or in one fenced block."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class Number(Written):
    """The last number with this unit (without one: the last number) is the value, or not further away than allowed.

    `unit` may have several spellings. `tolerance` is a distance, `relative_tolerance` a share of the value. The larger
    one counts.
    """

    type: Literal["number"]
    value: float
    unit: _Unit | Annotated[tuple[_Unit, ...], Field(min_length=1, max_length=MAX_TEXTS)] | None = None
    tolerance: Annotated[float, Field(ge=0)] = 0.0
    relative_tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.0


Check = Annotated[Exact | Regex | JsonSchema | Number, Field(discriminator="type")]
_CHECK: TypeAdapter[Exact | Regex | JsonSchema | Number] = TypeAdapter(Check)
_TYPES = "exact, regex, json_schema or number"


def check_of(value: object) -> Exact | Regex | JsonSchema | Number:
    """The check in a task. Patterns and schemas are not looked at. Raises `CheckError`."""
    if not isinstance(value, dict):
        raise CheckError("'check' must be an object")
    if is_larger_than(value, values=MAX_SCHEMA_VALUES, depth=MAX_SCHEMA_DEPTH):
        raise CheckError(f"'check' has more than {MAX_SCHEMA_VALUES} values or {MAX_SCHEMA_DEPTH} levels")
    if len(json.dumps(value)) > MAX_CHECK_BYTES:
        raise CheckError(f"'check' has more than {MAX_CHECK_BYTES >> 10} KiB")
    if value.get("type") not in ("exact", "regex", "json_schema", "number"):
        raise CheckError(f"'check' needs a type: {_TYPES}")
    try:
        return _CHECK.validate_python(value)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"][1:2])
        raise CheckError(f"'{where}' of 'check' {in_words(fault)}") from None


def compiled(value: object) -> Callable[[str], bool]:
    """The program of a check: whether an answer passes. Raises `CheckError` also for a bad pattern or schema."""
    check = check_of(value)
    if isinstance(check, Exact):
        return _exact(check)
    if isinstance(check, Number):
        return lambda answer: _has_number(check, answer)
    if isinstance(check, Regex):
        try:
            return _validator({"pattern": check.pattern}).is_valid
        except ValueError:
            raise CheckError(
                f"the pattern {excerpt(check.pattern, 60)!r} cannot be used; it may be too large, have a mistake, look "
                "around or refer back"
            ) from None
    try:
        validator = _validator(check.schema_)
    except ValueError as error:
        raise CheckError(f"the schema is not valid: {excerpt(str(error).partition(chr(10))[0], 200)}") from None
    return lambda answer: _fits(validator, answer)


def _validator(schema: Mapping[str, Any]) -> Any:
    """Raises `ValueError` for a schema that is not valid, or that refers to another document."""
    import jsonschema_rs  # on the server only

    bounded = jsonschema_rs.RegexOptions(size_limit=MAX_PATTERN_MEMORY, dfa_size_limit=MAX_PATTERN_MEMORY)
    return jsonschema_rs.validator_for(dict(schema), pattern_options=bounded, offline=True)


def _exact(check: Exact) -> Callable[[str], bool]:
    def plain(text: str) -> str:
        found = unicodedata.normalize("NFC", text).strip()
        return found.casefold() if check.ignore_case else found

    wanted = {plain(text) for text in ([check.answer] if isinstance(check.answer, str) else check.answer)}
    return lambda answer: plain(answer) in wanted


_FENCED = re.compile(r"```[\w-]*\n(.*)\n```", re.DOTALL)


def _fits(validator: Any, answer: str) -> bool:
    text = answer.strip()
    fenced = _FENCED.fullmatch(text)
    try:
        value = json.loads(fenced[1] if fenced else text, parse_constant=_no_number)
        return validator.is_valid(value)
    except (ValueError, RecursionError):  # not JSON, or nested too deeply
        return False


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a number in JSON")


_NUMBER = re.compile(r"(?<![\w.])[-+\u2212]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3})?", re.ASCII)


def _has_number(check: Number, answer: str) -> bool:
    units = (check.unit,) if isinstance(check.unit, str) else check.unit
    found = [each for each in _NUMBER.finditer(answer) if units is None or _unit_follows(answer, each.end(), units)]
    if not found:
        return False
    value = Decimal(repr(check.value))
    allowed = max(Decimal(repr(check.tolerance)), Decimal(repr(check.relative_tolerance)) * abs(value))
    try:
        return abs(Decimal(found[-1][0].replace(",", "").replace("\u2212", "-")) - value) <= allowed
    except InvalidOperation:
        return False


def _unit_follows(answer: str, place: int, units: tuple[str, ...]) -> bool:
    rest = answer[place : place + 2 * MAX_UNIT].lstrip(" \u00a0\u202f")
    return any(rest.startswith(unit) and not rest[len(unit) : len(unit) + 1].isalnum() for unit in units)


@lru_cache(maxsize=1024)
def _program(check: str) -> Callable[[str], bool]:
    return compiled(json.loads(check))


def passes(check: Mapping[str, Any], answer: str) -> bool:
    """Whether an answer passes a check."""
    return _program(json.dumps(check, sort_keys=True))(answer)


def scored(request: Mapping[str, Any]) -> list[list[bool]]:
    """For each of `tasks`, with a check and answers, whether each answer passes. For a process with limits."""
    return [[passes(task["check"], answer) for answer in task["answers"]] for task in request["tasks"]]
