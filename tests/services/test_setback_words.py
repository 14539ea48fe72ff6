"""What people read of a session that made no step."""

from __future__ import annotations

import pytest

from orchestrator.services.failed_starts import sentence
from worker.shared import causes

ALL = [getattr(causes, name) for name in vars(causes) if name.isupper()]


@pytest.mark.parametrize("cause", ALL)
def test_every_cause_has_its_own_words(cause: str) -> None:
    """Guard: a cause that is missing in the table is shown as its code word, which tells nobody what to do."""
    said = sentence(cause, "what the session said.")
    assert "the session ended before its first step" not in said
    assert said.count("what the session said") == 1
    assert "\n" not in said
    assert not said.endswith(".")


def test_words_are_said_once() -> None:
    """Guard: without the look whether they are there, a worker that says the same had it said twice."""
    whole = sentence(causes.GPU, "")
    assert sentence(causes.GPU, whole) == whole
