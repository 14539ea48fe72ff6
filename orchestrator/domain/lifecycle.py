"""The state machines: one enum and one table each. `EndReason` says why something ended and is never a state."""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """The state of a job."""

    QUEUED = "queued"
    LEASED = "leased"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def word(self) -> str:
        """The state's name for people and programs: the stored one, except `starting` for `leased`."""
        return "starting" if self is JobState.LEASED else self.value

    @classmethod
    def of(cls, word: str) -> JobState:
        """The state with this shown or stored name. Raises `ValueError`."""
        return cls.LEASED if word == cls.LEASED.word else cls(word)

    @property
    def is_final(self) -> bool:
        """Whether only a person's retry leaves this state."""
        return self in {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}

    @property
    def holds_lease(self) -> bool:
        """Exactly one live lease exists in this state, none in any other."""
        return self in {JobState.LEASED, JobState.RUNNING}


class LeaseState(StrEnum):
    """The state of a lease."""

    PROVISIONING = "provisioning"
    ACTIVE = "active"
    DRAINING = "draining"
    RELEASED = "released"
    EXPIRED = "expired"

    @property
    def is_live(self) -> bool:
        """The attempt may still report, commit and finish."""
        return self in {LeaseState.PROVISIONING, LeaseState.ACTIVE, LeaseState.DRAINING}


class CheckpointState(StrEnum):
    """The state of a checkpoint."""

    OFFERED = "offered"
    COMMITTED = "committed"
    PRUNED = "pruned"
    ABANDONED = "abandoned"
    CORRUPT = "corrupt"


class EndReason(StrEnum):
    """Why a lease or a job ended."""

    COMPLETED = "completed"
    HANDED_OFF = "handed_off"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    UNFIT = "unfit"
    FAILED = "failed"
    LOST = "lost"
    LAUNCH_FAILED = "launch_failed"


JOB_MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.LEASED, JobState.PAUSED, JobState.CANCELLED, JobState.FAILED}),
    JobState.LEASED: frozenset(
        {JobState.RUNNING, JobState.QUEUED, JobState.PAUSED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}
    ),
    JobState.RUNNING: frozenset(
        {JobState.QUEUED, JobState.PAUSED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}
    ),
    JobState.PAUSED: frozenset({JobState.QUEUED, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset({JobState.QUEUED}),
}
"""A failed or cancelled job goes back to the queue only when a person retries it."""

LEASE_MOVES: dict[LeaseState, frozenset[LeaseState]] = {
    LeaseState.PROVISIONING: frozenset({LeaseState.ACTIVE, LeaseState.RELEASED, LeaseState.EXPIRED}),
    LeaseState.ACTIVE: frozenset({LeaseState.DRAINING, LeaseState.RELEASED, LeaseState.EXPIRED}),
    LeaseState.DRAINING: frozenset({LeaseState.RELEASED, LeaseState.EXPIRED}),
    LeaseState.RELEASED: frozenset(),
    LeaseState.EXPIRED: frozenset(),
}

CHECKPOINT_MOVES: dict[CheckpointState, frozenset[CheckpointState]] = {
    CheckpointState.OFFERED: frozenset({CheckpointState.COMMITTED, CheckpointState.ABANDONED}),
    CheckpointState.COMMITTED: frozenset({CheckpointState.PRUNED, CheckpointState.CORRUPT}),
    CheckpointState.PRUNED: frozenset({CheckpointState.ABANDONED}),
    CheckpointState.ABANDONED: frozenset(),
    CheckpointState.CORRUPT: frozenset(),
}
