"""What people read of a session that made no step."""

from __future__ import annotations

import pytest

from orchestrator.services.failed_starts import Explanation, sentence
from worker.shared import causes

ALL = [getattr(causes, name) for name in vars(causes) if name.isupper()]


@pytest.mark.parametrize("cause", ALL)
def test_every_cause_has_its_own_words(cause: str) -> None:
    """Guard: a cause that is missing in the table is shown as its code word, which tells nobody what to do."""
    said = sentence(Explanation("what the session said.", cause))
    assert "the session ended before its first step" not in said
    assert said.count("what the session said") == 1
    assert "\n" not in said
    assert not said.endswith(".")


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (causes.DISK, "the disk of this machine is full: free some of it, or use a machine with a larger one"),
        (causes.GPU, "backend unsloth cannot run here: this machine has no GPU; set backend to auto or hf"),
        (causes.MEMORY, "org/m needs about 40.0 GiB on Tesla T4, which has 14.6 GiB free; use a larger card"),
        (causes.INPUT, "Kaggle did not bring a.bin: start the job again"),
    ],
)
def test_a_session_that_says_the_remedy_is_not_followed_by_another(cause: str, said: str) -> None:
    """Guard: without the look at `has_remedy` the page told two different things to do, behind two colons."""
    assert sentence(Explanation(said, cause, has_remedy=True)) == said
    assert sentence(Explanation(said, cause)) != said


def test_words_are_said_once() -> None:
    """Guard: without the look whether they are there, a worker that says the same had it said twice."""
    whole = sentence(Explanation("", causes.GPU))
    assert sentence(Explanation(whole, causes.GPU)) == whole
