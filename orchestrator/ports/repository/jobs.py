"""Repositories of jobs: the jobs, their leases and checkpoints, what workers report, and events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from orchestrator.domain.jobs import Checkpoint, Event, Job, Lease, StepTime
from orchestrator.domain.lifecycle import CheckpointState
from worker.shared.messages import MetricRow, Reading, Sample


class JobRepository(Protocol):
    """Jobs. Adding or saving one also writes its new events."""

    def get(self, job_id: str) -> Job | None:
        """The job, locked against others until the transaction ends."""
        ...

    def get_many(self, job_ids: Iterable[str]) -> dict[str, Job]:
        """Those of these jobs that exist, by id, without a lock."""
        ...

    def add(self, job: Job) -> None: ...
    def save(self, job: Job) -> None: ...
    def has_queued(self) -> bool:
        """Whether any job is queued, ready or not."""
        ...

    def queued(self, limit_per_member: int, now: float) -> list[Job]:
        """The best queued jobs of every member by priority and age, and those with a deadline."""
        ...

    def unended(self, member_id: str) -> list[Job]:
        """The member's jobs that have not ended, oldest first."""
        ...

    def unended_clones(self, job_id: str) -> list[Job]:
        """The clones of a job that have not ended, oldest first. What uses its adapter is among them."""
        ...

    def find_using_dataset(self, sha256: str, member_id: str) -> Job | None:
        """Any job that has not ended and reads this dataset. With a member, only a job of that member."""
        ...

    def typical_step_time(self, base_model: str, tokens_per_step: int) -> StepTime:
        """How long a step took in the newest jobs with this model and this many tokens per step."""
        ...

    def typical_unit_time(self, base_model: str, sequence_len: int, max_new_tokens: int) -> StepTime:
        """How long a unit took in the newest evaluations with this model and batches of this size."""
        ...

    def typical_checkpoint_bytes(self, base_model: str, lora_r: int) -> int | None:
        """Size in bytes of the newest checkpoint of a job with this model and this LoRA rank."""
        ...

    def set_tags(self, job_id: str, tags: Iterable[str]) -> None:
        """Replace the tags of a job."""
        ...

    def tags(self, job_id: str) -> list[str]: ...
    def set_note(self, job_id: str, note: str) -> None:
        """Replace the note of a job. An empty text removes it."""
        ...

    def clone_names(self, job_id: str) -> set[str]:
        """The names of all clones of a job, also of deleted ones."""
        ...

    def delete_records(self, job_id: str) -> None:
        """Delete the job's metrics, samples, readings, note and notification channels. The job itself stays.

        Of an evaluation, the answers go too, with the blind comparisons of them.
        """
        ...


class LeaseRepository(Protocol):
    """Leases: the sessions of jobs on machines."""

    def get(self, lease_id: str) -> Lease | None:
        """The lease. It and its job are locked against others until the transaction ends."""
        ...

    def add(self, lease: Lease) -> None:
        """Insert the lease. Raises `ConflictError` if its job already has a live one."""
        ...

    def save(self, lease: Lease) -> None: ...
    def live(self) -> list[Lease]: ...
    def live_of_job(self, job_id: str) -> Lease | None: ...
    def of_job(self, job_id: str) -> list[Lease]:
        """All leases that the job has had."""
        ...

    def on_account(self, account_id: str, limit: int) -> list[Lease]:
        """The newest leases on the account, newest first."""
        ...

    def uncollected(self) -> list[Lease]:
        """Ended leases whose machine may still hold output that was not collected."""
        ...

    def live_counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """Numbers of live leases by member id and by account id."""
        ...

    def set_external_id(self, lease_id: str, external_id: str) -> None: ...
    def set_collected(self, lease_id: str, at: float) -> None: ...


class CheckpointRepository(Protocol):
    """Checkpoints of jobs, by job id and SHA-256."""

    def get(self, job_id: str, sha256: str) -> Checkpoint | None: ...
    def add(self, checkpoint: Checkpoint) -> None: ...
    def save(self, checkpoint: Checkpoint) -> None: ...
    def of_job(self, job_id: str, state: CheckpointState | None = None) -> list[Checkpoint]:
        """The job's checkpoints by step. With a state, only those in this state."""
        ...

    def links(self, job_id: str) -> dict[str, tuple[int, str | None]]:
        """Step and parent of each of the job's checkpoints, by SHA-256, without their manifests."""
        ...

    def stale_offers(self, before: float) -> list[Checkpoint]:
        """Checkpoints that have been OFFERED since before that time."""
        ...

    def undeleted(self) -> list[Checkpoint]:
        """Checkpoints that no job continues from and whose object is not deleted yet (their `key` is not empty).

        A corrupt checkpoint stays while it is the head of its job. A job without another one fails on it again, and
        its message says why.
        """
        ...

    def is_in_use(self, store: str, key: str) -> bool:
        """Whether any job may still need this object.

        An unused object stays unused: only kept checkpoints are cloned.
        """
        ...


class ReportRepository(Protocol):
    """What workers report: metrics, samples of the model's text, and hardware readings."""

    def add_metrics(
        self, job_id: str, lease: Lease, rows: Sequence[MetricRow], at: float, *, replace: bool = True
    ) -> None:
        """Write metrics by (job, step, name). A repeated step replaces the old values unless `replace` is false."""
        ...

    def earlier_values(self, job_id: str, name: str, first: int, last: int, *, fence: int) -> dict[int, float]:
        """Values of one metric by step, from `first` to `last`, as reported under an older fence."""
        ...

    def add_samples(self, job_id: str, samples: Sequence[Sample], at: float) -> None: ...
    def add_reading(self, lease_id: str, at: float, step: int, reading: Reading) -> None: ...
    def delete_readings(self, first_lease: str, limit: int) -> int:
        """Delete up to `limit` readings of leases whose id sorts before this one. Returns how many were deleted."""
        ...


class EventRepository(Protocol):
    """Events of jobs, numbered in the order of their commit."""

    def after(self, event_id: int, *, job_id: str | None = None, limit: int) -> list[Event]:
        """Events with a larger id, oldest first. With a job, only its events."""
        ...

    def of_kind(self, job_id: str, kind: str) -> list[Event]:
        """The job's events of this kind, oldest first."""
        ...

    def newest_id(self) -> int:
        """Id of the newest event, or 0."""
        ...
