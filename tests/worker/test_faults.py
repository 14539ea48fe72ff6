"""A fault of a job file is said once, where it is, in words for people."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import pytest
from pydantic import ValidationError

from worker.shared.job_spec import JobSpec
from worker.shared.spec_errors import REFUSED, explain

RIGHT: dict[str, Any] = {"base_model": "org/name", "datasets": [{"path": "org/data"}], "max_steps": 1}


def faults(**changes: Any) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(RIGHT | changes)
    return explain(caught.value)


PATTERN = "'all-linear' or a regular expression of at most 500 characters"
NO_PATTERN = "must be a list, or be a regular expression: missing ), unterminated subpattern at position 0"


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"datasets": 5}, [("/datasets", "must be a list")]),
        ({"placement": {"providers": "kaggle"}}, [("/placement/providers", "must be a list")]),
        ({"placement": 3}, [("/placement", "must be keys with values")]),
        ({"lora_target_modules": 5}, [("/lora_target_modules", f"must be a list, or be {PATTERN}")]),
        ({"lora_target_modules": "(q"}, [("/lora_target_modules", NO_PATTERN)]),
        ({"loftq_config": {}}, [("/loftq_config", REFUSED["loftq_config"])]),
        ({"max_steps": math.nan}, [("/max_steps", "must be a number")]),
        ({"learning_rate": math.nan}, [("/learning_rate", "must be a number")]),
        ({"deadline": math.inf}, [("/deadline", "must be a finite number")]),
        ({"learning_rate": math.inf}, [("/learning_rate", "must be a finite number")]),
    ],
)
def test_words_are_those_of_a_job_file(changes: dict[str, Any], found: list[tuple[str, str]]) -> None:
    """Guard: without words of its own these spoke of tuples and classes, and of NaN as of a number too large."""
    assert faults(**changes) == found


def test_a_fault_within_a_list_is_not_said_of_the_list_too() -> None:
    """Guard: without the look for deeper faults the list of data sets was called too short as well."""
    found = faults(datasets=[{"pth": "a"}])
    assert [where for where, _ in found] == ["/datasets/0/path", "/datasets/0/pth"]


@pytest.mark.parametrize("modules", [[""], ["q_proj", " "]])
def test_a_pointer_holds_keys_of_the_file_alone(modules: list[str]) -> None:
    """Guard: without `_place` it went on with `tuple[function-after[...` and could be followed by nobody."""
    assert faults(lora_target_modules=modules) == [(f"/lora_target_modules/{len(modules) - 1}", "must not be empty")]


def test_a_pointer_escapes_what_it_is_made_of() -> None:
    """Guard: without RFC 6901's escapes `a/b~` pointed at a key `b~` inside `a`."""
    assert faults(**{"a/b~": 1}) == [("/a~1b~0", "unknown key 'a/b~'")]


def test_no_module_at_all_is_refused() -> None:
    """Guard: without the least length the job was queued, and every session of it failed."""
    assert faults(lora_target_modules=[]) == [
        ("/lora_target_modules", f"must have at least one entry, or be {PATTERN}")
    ]


@pytest.mark.parametrize("deadline", [dt.date(2026, 12, 1), "2026-12-01"])
def test_a_deadline_is_a_moment(deadline: object) -> None:
    """Guard: without the look for `date` a day in YAML was said to be no number."""
    assert faults(deadline=deadline) == [
        ("/deadline", "must be a time with its zone, for example 2026-12-01T18:00:00+01:00")
    ]


@pytest.mark.parametrize("value", [math.inf, 1e300])
def test_a_session_has_an_end(value: float) -> None:
    """Guard: without the bound, and `allow_inf_nan` for other numbers, the command line ended in a traceback: JSON has
    no infinity."""
    ((where, _),) = faults(placement={"max_session_s": value})
    assert where == "/placement/max_session_s"
