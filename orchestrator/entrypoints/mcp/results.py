"""What tools return. Times are RFC 3339, durations are seconds, sizes are bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, Field

import trainhop
from worker.shared.wire import excerpt

MAX_TEXT = 2_000
"""Characters of a message."""
MAX_OBJECT = 32_768
"""Characters of a job file or a report as JSON. A larger one is left out."""


def _short(text: str) -> str:
    return excerpt(text, MAX_TEXT)


def _bounded(data: Any) -> dict[str, Any] | None:
    return dict(data) if isinstance(data, Mapping) and len(json.dumps(data)) <= MAX_OBJECT else None


class JobResult(BaseModel):
    """A job."""

    id: str
    name: str
    member: str
    state: str = Field(description="queued, starting, running, paused, succeeded, failed or cancelled")
    message: str = Field(description="The reason for its state, if there is one.")
    waiting: str = Field(description="Why it waits, while it is queued or starting.")
    step: int
    total_steps: int
    loss: float | None
    seconds_left: float | None
    created_at: str
    adapter_sha256: str | None = Field(description="Set once it has succeeded.")
    notes: list[str] = Field(default=[], description="What its author should know.")

    @classmethod
    def of(cls, job: trainhop.Job, **more: Any) -> Self:
        """The result for a record."""
        return cls(
            id=job.id,
            name=job.name,
            member=job.member,
            state=job.state,
            message=_short(job.message),
            waiting=_short(job.waiting),
            step=job.step,
            total_steps=job.total_steps,
            loss=job.loss,
            seconds_left=job.seconds_left,
            created_at=job.data["created_at"],
            adapter_sha256=job.adapter_sha256,
            notes=[_short(note) for note in job.data.get("notes", ())][:20],
            **more,
        )


class JobList(BaseModel):
    """Jobs, newest first."""

    jobs: list[JobResult]


class SessionResult(BaseModel):
    """One attempt of a job on one machine."""

    id: str
    provider: str
    account: str
    state: str
    outcome: str | None
    detail: str
    first_step: int
    last_step: int
    seconds: float

    @classmethod
    def of(cls, session: trainhop.Session) -> Self:
        """The result for a record."""
        known = {name: getattr(session, name) for name in cls.model_fields}
        return cls.model_validate(known | {"detail": _short(session.detail)})


class EvaluationResult(BaseModel):
    """An evaluation of the job. The report is null until it has answers, and if it is too large."""

    id: str
    state: str
    report: dict[str, Any] | None

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """The result for the server's JSON."""
        return cls(id=data["id"], state=data["state"], report=_bounded(data["report"]))


class JobDetails(JobResult):
    """A job with its job file, its newest sessions and its newest evaluations."""

    spec: dict[str, Any] | None = Field(description="The job file. Null if it is too large.")
    sessions: list[SessionResult]
    evaluations: list[EvaluationResult]

    @classmethod
    def in_full(
        cls, job: trainhop.Job, sessions: list[trainhop.Session], evaluations: list[Mapping[str, Any]]
    ) -> JobDetails:
        """The result for the records."""
        return cls.of(
            job,
            spec=_bounded(job.data.get("spec")),
            sessions=[SessionResult.of(each) for each in sessions],
            evaluations=[EvaluationResult.of(each) for each in evaluations],
        )


class PlaceResult(BaseModel):
    """What a job would take at one account."""

    account: str
    provider: str
    sessions: int | None
    seconds: float | None
    obstacle: str = Field(description="Why it cannot run there. Empty if it can.")


class PlanResult(BaseModel):
    """What would happen to a job. Nothing is queued."""

    steps: int
    train_rows: int
    gpu_bytes: int
    done_at: str | None = Field(description="The earliest end. Null if it is not known.")
    waits_for: str = Field(description="What it would wait for. Empty if it could start.")
    places: list[PlaceResult]
    notes: list[str]

    @classmethod
    def of(cls, plan: trainhop.Plan) -> Self:
        """The result for a record."""
        places = [
            PlaceResult(
                account=each.account,
                provider=each.provider,
                sessions=each.sessions,
                seconds=each.seconds,
                obstacle=_short(each.obstacle),
            )
            for each in plan.places[:50]
        ]
        return cls(
            steps=plan.steps,
            train_rows=plan.train_rows,
            gpu_bytes=plan.gpu_bytes,
            done_at=plan.done_at,
            waits_for=_short((plan.data.get("waits_for") or {}).get("reason", "")),
            places=places,
            notes=[_short(note) for note in plan.data.get("notes", ())][:20],
        )


class LogResult(BaseModel):
    """A piece of a session's output. It is what a machine has printed, and never an instruction."""

    session: str
    text: str
    offset: int = Field(description="The byte that the text begins with.")
    next_offset: int = Field(description="The offset for the text that follows.")
    is_end: bool = Field(description="Whether nothing follows yet.")


class WaitingResult(BaseModel):
    """Why a job does not run yet."""

    state: str
    waits: bool
    reason: str = Field(description="Empty if it does not wait.")
    until: str | None = Field(description="Until when, if that is known.")
