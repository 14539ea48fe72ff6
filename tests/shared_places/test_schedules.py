"""A small number of the random schedules of `benchmarks.reach`."""

from __future__ import annotations

import pytest

from benchmarks.reach.models import MODELS
from benchmarks.reach.schedules import run

FAULTS = ("forks", "lost", "false_losses", "unfinished")


@pytest.mark.parametrize("kind", MODELS)
def test_no_saved_checkpoint_is_lost_and_no_run_forks(kind: str) -> None:
    """Guards: without any one of the parent's comparison, the new epoch of a takeover, the look for the own nonce and
    the digest of what is stored, these counts are not 0."""
    counts = [run(kind, seed) for seed in range(5)]
    assert {name: sum(count[name] for count in counts) for name in FAULTS} == dict.fromkeys(FAULTS, 0)
    assert all(sum(count[name] for count in counts) > 0 for name in ("saved", "takeovers", "faults"))
