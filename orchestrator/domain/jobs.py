"""A job with its events, leases and checkpoints. Times are seconds since the Unix epoch, UTC."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from orchestrator.domain.errors import IllegalMoveError, StaleFenceError
from orchestrator.domain.lifecycle import (
    CHECKPOINT_MOVES,
    JOB_MOVES,
    LEASE_MOVES,
    CheckpointState,
    EndReason,
    JobState,
    LeaseState,
)

LOSSES_BEFORE_GIVING_UP = 20
"""After this many lost machines in a row without a new checkpoint, a job fails."""

FAILURES_BEFORE_GIVING_UP = 4
"""After this many reported crashes in a row without a new checkpoint, a job fails."""


@dataclass(kw_only=True)
class Event:
    """One event of a job, written in the transaction in which it happened."""

    job_id: str
    at: float
    kind: str
    actor: str
    lease_id: str | None = None
    reason: str = ""
    data: dict[str, Any] = field(default_factory=dict[str, Any])
    id: int | None = None


CPU_SLOWDOWN = 50.0
"""Rough ratio of the time of a step on a CPU to its time on a GPU.

It is used until a step has been timed on both. A T4 does about 20 TFLOP/s of this work, a CPU with eight cores 0.4.
"""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one step of a job, as last timed on a GPU and on a CPU. None means not timed yet."""

    gpu_s: float | None = None
    host_s: float | None = None

    @property
    def is_known(self) -> bool:
        """Whether a step has been timed anywhere."""
        return self.gpu_s is not None or self.host_s is not None

    def timed(self, *, gpu: bool) -> float | None:
        """Seconds of a step on such a machine, if it was timed there."""
        return self.gpu_s if gpu else self.host_s

    def guess(self, *, gpu: bool) -> float:
        """Seconds of a step on such a machine. If not timed there, an estimate from the other kind of machine.

        The estimate is good enough to choose between places.
        """
        seen = self.timed(gpu=gpu)
        if seen is not None:
            return seen
        if gpu:
            return 1.0 if self.host_s is None else self.host_s / CPU_SLOWDOWN
        return CPU_SLOWDOWN * (1.0 if self.gpu_s is None else self.gpu_s)


@dataclass(kw_only=True)
class Job:
    """One fine-tuning run. `spec` is the resolved job file as JSON-able data, `head` the newest committed checkpoint.

    `first_step` is 0, or the step of the checkpoint of the job `cloned_from` with which this one begins. `gpu_bytes`
    and `host_bytes` are the estimated memory of a session on a GPU and on a CPU (0: unknown). `gpu_step_s` and
    `host_step_s` are the last measured seconds per step (None: not measured yet).
    """

    id: str
    member_id: str
    name: str
    spec: dict[str, Any]
    total_steps: int
    priority: int
    deadline: float | None
    created_at: float
    updated_at: float
    state: JobState = JobState.QUEUED
    end_reason: EndReason | None = None
    message: str = ""
    fence: int = 0
    head: str | None = None
    head_step: int = 0
    losses_in_a_row: int = 0
    failures_in_a_row: int = 0
    not_before: float = 0.0
    cancel_requested_at: float | None = None
    pause_requested_at: float | None = None
    cloned_from: str | None = None
    first_step: int = 0
    gpu_bytes: int = 0
    host_bytes: int = 0
    gpu_step_s: float | None = None
    host_step_s: float | None = None
    adapter_key: str | None = None
    adapter_store: str | None = None
    adapter_zip_sha256: str | None = None
    adapter_sha256: str | None = None
    adapter_bytes: int | None = None
    deleted_at: float | None = None
    events: list[Event] = field(default_factory=list[Event])

    def note(
        self, kind: str, *, at: float, actor: str, reason: str = "", lease_id: str | None = None, **data: Any
    ) -> None:
        """Record an event that does not change the state."""
        self.updated_at = at
        self.events.append(
            Event(job_id=self.id, at=at, kind=kind, actor=actor, lease_id=lease_id, reason=reason, data=data)
        )

    @property
    def is_evaluation(self) -> bool:
        """Whether the job evaluates a checkpoint instead of training."""
        return self.spec.get("evaluation") is not None

    @property
    def is_export(self) -> bool:
        """Whether the job exports the adapter of another one instead of training."""
        return self.spec.get("export") is not None

    @property
    def is_chat(self) -> bool:
        """Whether the job answers questions with the adapter of another one instead of training."""
        return self.spec.get("chat") is not None

    @property
    def used_job(self) -> str | None:
        """The finished job whose adapter an export or a chat begins with. Such a job has no checkpoints."""
        asked = self.spec.get("export") or self.spec.get("chat")
        return asked["job"] if asked else None

    @property
    def step_time(self) -> StepTime:
        """Seconds per step, as far as they were timed."""
        return StepTime(gpu_s=self.gpu_step_s, host_s=self.host_step_s)

    def timed(self, step_s: float, *, gpu: bool) -> None:
        """Record how many seconds a step took."""
        if gpu:
            self.gpu_step_s = step_s
        else:
            self.host_step_s = step_s

    def to(self, new: JobState, *, reason: str, at: float, actor: str, lease_id: str | None = None) -> None:
        """Change state, or raise `IllegalMoveError`. Nothing else assigns `state`."""
        if new not in JOB_MOVES[self.state]:
            raise IllegalMoveError(f"Job {self.id} is {self.state.word} and cannot become {new.word}.")
        old, self.state = self.state, new
        if new.is_final or new is JobState.PAUSED:
            self.cancel_requested_at = self.pause_requested_at = None
        self.note("job." + new, at=at, actor=actor, reason=reason, lease_id=lease_id, old=str(old), new=str(new))

    def create_lease(self, *, at: float, actor: str, lease_id: str) -> int:
        """Lease the job to a machine. Returns the new fence."""
        self.to(JobState.LEASED, reason="dispatched", at=at, actor=actor, lease_id=lease_id)
        self.fence += 1
        return self.fence

    def guard(self, fence: int) -> None:
        """Raise `StaleFenceError` unless `fence` is the newest and a lease is live."""
        if fence != self.fence or not self.state.holds_lease:
            raise StaleFenceError(
                f"Fence {fence} of job {self.id} is stale (now {self.fence}, job {self.state.word}). Stop the worker."
            )

    def advance(self, checkpoint: Checkpoint, *, at: float) -> None:
        """Make a verified checkpoint the head. Progress resets the counters that would end the job."""
        self.head, self.head_step = checkpoint.sha256, checkpoint.step
        self.losses_in_a_row = self.failures_in_a_row = 0
        self.note(
            "checkpoint.committed",
            at=at,
            actor="worker",
            lease_id=checkpoint.lease_id,
            step=checkpoint.step,
            sha256=checkpoint.sha256,
            size=checkpoint.size,
        )

    def release(
        self,
        end: EndReason,
        *,
        detail: str,
        at: float,
        actor: str,
        lease_id: str,
        retry_at: float,
        counts: bool = True,
        cause: str = "",
        stop: str = "",
    ) -> None:
        """End the lease of an unfinished job: pause, cancel, fail or queue the job, as the reason requires.

        With `counts` false (the fault is the server's or the machine's) the end does not count toward the job's
        failure. `cause` is why the session made no step. `stop` says why another session would not help.
        """
        reason = f"{end}: {detail}" if detail else str(end)
        if self.cancel_requested_at is not None:
            self._end(JobState.CANCELLED, EndReason.CANCELLED, "cancelled on request", at, actor, lease_id)
            return
        if self.pause_requested_at is not None:
            self.to(JobState.PAUSED, reason=reason, at=at, actor=actor, lease_id=lease_id)
            return
        if counts and (cause or end in {EndReason.LOST, EndReason.LAUNCH_FAILED, EndReason.UNFIT}):
            self.losses_in_a_row += 1
        elif counts and end is EndReason.FAILED:
            self.failures_in_a_row += 1
        if hopeless := stop or self._hopeless(detail):
            self._end(JobState.FAILED, EndReason.FAILED, hopeless, at, actor, lease_id)
            return
        self.not_before = retry_at
        self.to(JobState.QUEUED, reason=reason, at=at, actor=actor, lease_id=lease_id)

    def _hopeless(self, detail: str) -> str:
        if self.failures_in_a_row >= FAILURES_BEFORE_GIVING_UP:
            return f"failed {self.failures_in_a_row} times without a new checkpoint; last: {detail or 'no message'}"
        if self.losses_in_a_row >= LOSSES_BEFORE_GIVING_UP:
            return f"{self.losses_in_a_row} machines in a row ended without a new checkpoint; last: {detail or 'lost'}"
        return ""

    def succeed(self, *, at: float, lease_id: str, early: str = "") -> None:
        """The last step is committed and the adapter stored. `early` says how the job ended before its last step."""
        self.end_reason, self.message = EndReason.COMPLETED, early
        self.to(JobState.SUCCEEDED, reason=early or "all steps completed", at=at, actor="worker", lease_id=lease_id)

    def fail(self, message: str, *, at: float, actor: str, lease_id: str | None = None) -> None:
        """End the job as failed, with a message for its owner, because no other machine would succeed."""
        self._end(JobState.FAILED, EndReason.FAILED, message, at, actor, lease_id)

    def cancel(self, *, at: float, actor: str, lease_id: str | None = None) -> None:
        """End the job at a person's request."""
        self._end(JobState.CANCELLED, EndReason.CANCELLED, "cancelled on request", at, actor, lease_id)

    def _end(self, new: JobState, end: EndReason, message: str, at: float, actor: str, lease_id: str | None) -> None:
        self.end_reason, self.message = end, message
        self.to(new, reason=message, at=at, actor=actor, lease_id=lease_id)

    def delete(self, *, at: float, actor: str) -> None:
        """Hide the job from everyone. Nothing of it is kept in a store."""
        self.deleted_at = at
        self.head = self.adapter_key = self.adapter_store = None
        self.note("job.deleted", at=at, actor=actor)

    def queue_again(self, *, at: float, actor: str, reason: str) -> None:
        """A person resumes or retries the job. It continues from its head."""
        self.to(JobState.QUEUED, reason=reason, at=at, actor=actor)
        self.end_reason, self.message, self.not_before = None, "", 0.0
        self.losses_in_a_row = self.failures_in_a_row = 0


_NEXT = ".next"


def session_of(lease_id: str) -> str:
    """The lease for which the provider launched the session of this one: itself, or the one that it continues."""
    return lease_id.removesuffix(_NEXT)


@dataclass(kw_only=True)
class Lease:
    """One attempt of a job on one machine.

    `offline` says that the machine cannot call: it was launched with its assignment, and the server only reads its
    messages. After `expires_at` silence is suspicious. After `deadline_at` the machine is certainly gone. `store` is
    where its checkpoints and its adapter go. `step`, `phase`, `ledger` and the other fields are what the worker last
    reported.
    """

    id: str
    job_id: str
    member_id: str
    account_id: str
    provider: str
    fence: int
    token_hash: str
    created_at: float
    expires_at: float
    deadline_at: float
    budget_s: float
    offline: bool = False
    store: str = "local"
    state: LeaseState = LeaseState.PROVISIONING
    end_reason: EndReason | None = None
    detail: str = ""
    cause: str = ""
    """Why it made no first step (`worker.shared.causes`). Empty if it made one, or if the cause is unknown."""
    image: str = ""
    external_id: str | None = None
    nonce: str | None = None
    started_at: float | None = None
    ended_at: float | None = None
    collected_at: float | None = None
    last_seen_at: float | None = None
    last_seq: int = 0
    first_step: int = 0
    step: int = 0
    phase: str = "boot"
    backend: str | None = None
    fidelity: str | None = None
    seconds_per_step: float | None = None
    hardware: dict[str, Any] = field(default_factory=dict[str, Any])
    ledger: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def next_id(self) -> str:
        """The id of the lease with which its session continues, if it does. There is at most one."""
        return self.id + _NEXT

    @property
    def continues(self) -> bool:
        """Whether it began in the session of an earlier lease."""
        return self.id.endswith(_NEXT)

    @property
    def session(self) -> str:
        """See `session_of`."""
        return session_of(self.id)

    @property
    def on_gpu(self) -> bool:
        """Whether its machine trains on a GPU, as far as the worker has reported it."""
        return self.hardware.get("device") == "cuda"

    def to(self, new: LeaseState) -> None:
        """Change state, or raise `IllegalMoveError`."""
        if new not in LEASE_MOVES[self.state]:
            raise IllegalMoveError(f"lease {self.id} is {self.state} and cannot become {new}")
        self.state = new

    def guard(self) -> None:
        """Raise `StaleFenceError` unless the lease is live."""
        if not self.state.is_live:
            raise StaleFenceError(f"Lease {self.id} has ended ({self.end_reason}). Stop the worker.")

    def end(self, new: LeaseState, reason: EndReason, *, at: float, detail: str = "") -> None:
        """End the lease."""
        self.to(new)
        self.end_reason, self.detail, self.ended_at = reason, detail, at


@dataclass(kw_only=True)
class Checkpoint:
    """One immutable file. `sha256` is its id, `key` its place in the store, `parent` the head it continues."""

    sha256: str
    job_id: str
    lease_id: str
    fence: int
    step: int
    parent: str | None
    key: str
    size: int
    store: str
    manifest: dict[str, Any]
    created_at: float
    state: CheckpointState = CheckpointState.OFFERED

    def to(self, new: CheckpointState) -> None:
        """Change state, or raise `IllegalMoveError`."""
        if new not in CHECKPOINT_MOVES[self.state]:
            raise IllegalMoveError(f"checkpoint {self.sha256[:12]} is {self.state} and cannot become {new}")
        self.state = new
