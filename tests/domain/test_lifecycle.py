"""The state tables: total, closed, and the only door."""

from __future__ import annotations

from enum import StrEnum
from itertools import product

import pytest

from orchestrator.domain.errors import IllegalMoveError
from orchestrator.domain.jobs import FAILURES_BEFORE_GIVING_UP, LOSSES_BEFORE_GIVING_UP, Job
from orchestrator.domain.lifecycle import (
    CHECKPOINT_MOVES,
    JOB_MOVES,
    LEASE_MOVES,
    CheckpointState,
    EndReason,
    JobState,
    LeaseState,
)

TABLES = [(JobState, JOB_MOVES), (LeaseState, LEASE_MOVES), (CheckpointState, CHECKPOINT_MOVES)]


def a_job(state: JobState = JobState.QUEUED) -> Job:
    return Job(
        id="job-1",
        member_id="m",
        name="n",
        spec={},
        total_steps=10,
        priority=0,
        deadline=None,
        created_at=0.0,
        updated_at=0.0,
        state=state,
    )


@pytest.mark.parametrize(("states", "moves"), TABLES)
def test_every_state_has_its_row_and_every_row_leads_to_states(
    states: type[StrEnum], moves: dict[StrEnum, frozenset[StrEnum]]
) -> None:
    assert set(moves) == set(states)
    assert {new for row in moves.values() for new in row} <= set(states)


@pytest.mark.parametrize(("old", "new"), list(product(JobState, JobState)))
def test_a_job_moves_where_the_table_says_and_nowhere_else(old: JobState, new: JobState) -> None:
    """Seen failing without the check in `Job.to`."""
    job = a_job(old)
    if new in JOB_MOVES[old]:
        job.to(new, reason="because", at=1.0, actor="test")
        assert (job.state, job.events[-1].data) == (new, {"old": old, "new": new})
    else:
        with pytest.raises(IllegalMoveError, match=rf"is {old.word} and cannot become {new.word}\."):
            job.to(new, reason="because", at=1.0, actor="test")
        assert not job.events


def test_every_job_that_is_given_back_goes_where_it_should() -> None:
    for end in EndReason:
        job = a_job(JobState.RUNNING)
        job.release(end, detail="", at=1.0, actor="test", lease_id="l", retry_at=5.0)
        assert (job.state, job.not_before) == (JobState.QUEUED, 5.0)


def test_a_pause_that_was_asked_for_survives_the_loss_of_the_machine() -> None:
    job = a_job(JobState.RUNNING)
    job.pause_requested_at = 1.0
    job.release(EndReason.LOST, detail="gone", at=2.0, actor="test", lease_id="l", retry_at=2.0)
    assert job.state is JobState.PAUSED
    assert job.pause_requested_at is None


@pytest.mark.parametrize(
    ("end", "times", "words"),
    [
        (EndReason.FAILED, FAILURES_BEFORE_GIVING_UP, "failed 4 times without a new checkpoint; last: boom"),
        (EndReason.LOST, LOSSES_BEFORE_GIVING_UP, "20 machines in a row ended without a new checkpoint; last: boom"),
    ],
)
def test_a_hopeless_job_ends_in_words(end: EndReason, times: int, words: str) -> None:
    """Seen failing without the counters: a poisonous job would go round for ever (promise 10)."""
    job = a_job()
    for _ in range(times):
        assert job.state is JobState.QUEUED
        job.create_lease(at=1.0, actor="test", lease_id="l")
        job.release(end, detail="boom", at=1.0, actor="test", lease_id="l", retry_at=1.0)
    assert (job.state, job.message) == (JobState.FAILED, words)
