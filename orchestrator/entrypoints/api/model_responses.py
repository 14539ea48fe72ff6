"""API responses about models, their candidates and verdicts. Shares are from 0 to 1."""

from __future__ import annotations

from typing import Any

from orchestrator.domain.models import MoveKind
from orchestrator.domain.trust.audit_decision import Decision
from orchestrator.domain.trust.judge import Advice
from orchestrator.domain.trust.sign_test import Quality
from orchestrator.domain.trust.verdict import Recommendation
from orchestrator.entrypoints.api.responses import ResponseModel, Time


class Votes(ResponseModel):
    """What people said of the answers, by prompt: won by the adapter, won by its base, tied."""

    quality: Quality
    wins: int
    losses: int
    ties: int


class JudgeOfVerdict(ResponseModel):
    """What a judge model said of the answers, how it behaved, and what to know before believing it."""

    model: str
    url: str
    prompt_version: int
    advice: Advice
    conduct: str
    people: str
    warnings: list[str]


class AuditOfData(ResponseModel):
    """The audit of a data file in a few words. `decision` is null without an audit with a limit."""

    sha256: str
    words: str
    decision: Decision | None


class Verdict(ResponseModel):
    """The verdict on a job's adapter, with its reasons and what to do next.

    `more` is the number of ratings that would probably decide. `evaluation` is the job of the newest finished
    evaluation. `error_rate` is the largest chance that one of the `comparisons` so far, or a judge model that agrees
    with people, calls an adapter better which is as good as its base, or that a declared gain is luck. `missing`
    names what is not recorded about the adapter.
    """

    answer: Recommendation
    reasons: list[str]
    more: int | None
    advice: str
    error_rate: float
    votes: Votes | None
    judges: list[JudgeOfVerdict]
    evaluation: str | None
    comparisons: int
    report: dict[str, Any] | None
    audits: list[AuditOfData]
    missing: list[str]


class Candidate(ResponseModel):
    """The adapter of a finished job. `verdict` is null if the job was deleted, and its adapter with it."""

    job: str
    name: str
    adapter_sha256: str
    added_at: Time
    promoted: bool
    verdict: Verdict | None


class Move(ResponseModel):
    """A move of `promoted` from one job to another. `verdict` and `reasons` are those of the new one at that time."""

    number: int
    kind: MoveKind
    actor: str
    at: Time
    before: str | None
    after: str | None
    verdict: Recommendation | None
    reasons: list[str]
    against_verdict: bool


class Model(ResponseModel):
    """A model of a member. `promoted` is a job. `moves` counts how often `promoted` moved."""

    name: str
    member: str
    created_at: Time
    promoted: str | None
    against_verdict: bool
    moves: int


class ModelInFull(Model):
    """A model with its candidates, newest first, and its history, oldest first.

    `rollback_to` is the job that a rollback would promote. Null means that nothing would be promoted.
    """

    candidates: list[Candidate]
    history: list[Move]
    rollback_to: str | None


class Provenance(ResponseModel):
    """Everything behind an adapter with its hashes. `format` is the version of this file."""

    format: int
    job: str
    adapter: dict[str, Any]
    base_model: dict[str, Any]
    datasets: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    accepted_findings: list[str]
    recipe: dict[str, Any]
    checkpoints: list[dict[str, Any]]
    missing: list[str]
    evaluation: dict[str, Any] | None
    comparison: dict[str, Any] | None
    judges: list[dict[str, Any]]
    verdict: dict[str, Any]
    promoted: list[dict[str, Any]]
