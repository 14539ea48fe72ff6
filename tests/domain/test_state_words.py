"""One end has one word, on whatever a person or a program reads."""

from __future__ import annotations

import typing

from orchestrator.domain.lifecycle import JobState
from orchestrator.entrypoints.api.responses import StateWord

WORDS = ("queued", "starting", "running", "paused", "succeeded", "failed", "cancelled")


def test_the_api_has_one_word_for_every_state() -> None:
    """Guard: without `word` the API called a job `leased` that the pages call `starting`."""
    assert tuple(state.word for state in JobState) == WORDS
    assert typing.get_args(StateWord) == WORDS
    assert [JobState.of(word) for word in WORDS] == list(JobState)
    assert JobState.of("leased") is JobState.LEASED
